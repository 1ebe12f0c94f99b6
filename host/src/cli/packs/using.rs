//! Which packs `generate`, `eval` and `run` put on a base: those named, else those active there.

use super::Global;
use crate::pack::{InUse, Store, Weighted};
use std::path::{Path, PathBuf};

/// Names packs.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct PackOptions {
    /// Skill pack to put on the base, with a weight where it is not 1; may be repeated [default: those that `packs apply --activate` made active]
    #[arg(long, value_name = "NAME[:W]")]
    pub pack: Vec<Weighted>,
    /// No packs, whichever are active
    #[arg(long, conflicts_with = "pack")]
    pub no_packs: bool,
    /// Directory with the packs [default: $PLASTIC_PACKS, else packs]
    #[arg(long, value_name = "DIR")]
    pub packs: Option<PathBuf>,
}

impl PackOptions {
    /// Where packs lie.
    pub fn store(&self) -> Store {
        Store::new(self.packs.clone())
    }

    /// The packs that are named, or what `kept` says where none is: `None` for the active ones.
    pub fn over(&self, kept: Option<Vec<Weighted>>) -> Option<Vec<Weighted>> {
        match self.no_packs || !self.pack.is_empty() {
            true => Some(self.pack.clone()),
            false => kept,
        }
    }

    /// Reads the packs for a base.
    ///
    /// # Errors
    /// When one is not there or damaged.
    pub fn choose(&self, base: &Path) -> anyhow::Result<InUse> {
        let store = self.store();
        Ok(match self.over(None) {
            Some(named) => InUse::read(&store, &named)?,
            None => InUse::active(&store, base)?,
        })
    }
}

/// Says which packs are in use.
pub fn tell(packs: &InUse, g: &Global) {
    if !g.quiet && !packs.is_empty() {
        note!("{}", line(packs));
    }
}

/// `packs in use: a × 0.7, b`.
fn line(packs: &InUse) -> String {
    let names: Vec<String> = packs.used().iter().map(ToString::to_string).collect();
    format!("{} in use: {}", if names.len() == 1 { "pack" } else { "packs" }, names.join(", "))
}
