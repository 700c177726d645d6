//! The vocabulary of synfire.
