//! Short programs that use moec
