//! `--awake-budget`: how much of an elastic checkpoint runs.

use crate::compress::Manifest;
use crate::model::{Levels, awake};
use std::path::Path;

/// The option.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub struct AwakeArgs {
    /// Of an elastic checkpoint, keep so large a share of the slices' parameters awake [default: as `plastic-host elastic set` left it]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub awake_budget: Option<f64>,
}

/// A share above 0 and up to 1.
///
/// # Errors
/// What is expected.
pub fn share(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(x) if x > 0.0 && x <= 1.0 => Ok(x),
        _ => Err("a share lies above 0 and up to 1, such as 0.6".into()),
    }
}

/// What runs of a base: the levels of an elastic checkpoint, `None` for one that is not, and where the base itself
/// runs in its place.
///
/// # Errors
/// When a budget is given and the base is no elastic checkpoint, or so small that nothing runs; when the checkpoint is
/// damaged.
pub fn levels(budget: Option<f64>, dir: &Path) -> anyhow::Result<Option<Levels>> {
    match budget {
        None => Ok(awake::recorded(dir)?.filter(|r| !r.runs_base).map(|r| r.levels)),
        Some(share) => {
            let none = || {
                anyhow::anyhow!(
                    "--awake-budget {share}: {} is no elastic checkpoint, so all of it is awake; make one with `plastic-host compress`, or leave the option out",
                    dir.display()
                )
            };
            let manifest = Manifest::read(dir)?.ok_or_else(none)?;
            Ok(Some(manifest.named(&manifest.levels(dir, share)?)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_share() {
        assert_eq!(share("0.5"), Ok(0.5));
        assert_eq!(share(" 1 "), Ok(1.0));
        for wrong in ["0", "-0.1", "1.01", "NaN", "inf", "", "half", "50%"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
    }
}
