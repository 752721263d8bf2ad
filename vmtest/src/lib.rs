//! vmtest
