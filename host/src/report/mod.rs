//! Events into tables, CSV, JSON and pictures.
