//! Tests over the whole of moec
