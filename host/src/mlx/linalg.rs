//! Symmetric eigenproblems and matrix roots.
