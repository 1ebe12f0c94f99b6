//! Opening the base a verb names.
use super::Global;
use crate::model::registry::{self, Base};
/// x
pub fn open(spec: &Option<String>, _g: &Global) -> anyhow::Result<Base> {
    Ok(registry::resolve(spec.as_deref().unwrap_or(registry::DEFAULT_BASE), &mut registry::Silent)?)
}
