//! What is on disk between the moec compiler and its loader
