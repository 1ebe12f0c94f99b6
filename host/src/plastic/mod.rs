//! Slices, factors, the parked store, the step loop, the journal.
