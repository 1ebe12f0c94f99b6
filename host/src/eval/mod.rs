//! Data sets and perplexity.
