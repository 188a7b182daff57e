//! What the tests over the whole of moec share.
