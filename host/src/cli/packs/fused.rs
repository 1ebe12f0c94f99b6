//! `packs apply --fuse`: measures what fusing leaves of packs, refuses where that is too little, writes the rest.

use super::apply::{Fitted, shown};
use super::{Global, output, table};
use crate::cli::ui;
use crate::model::{LoadOptions, Model};
use crate::pack::fuse::{Bits, Fate, Fusion};
use crate::pack::probe::{self, Difference};
use crate::pack::{Store, attach};
use std::path::PathBuf;

/// Slices that are listed where there are more.
const LISTED: usize = 12;

/// Options of fusing.
#[derive(clap::Args, Debug)]
pub struct FuseOptions {
    /// Write a checkpoint with the packs folded into its weights; mlx-lm loads it
    #[arg(long, value_name = "OUT")]
    fuse: Option<PathBuf>,
    /// How the slices that change are stored; more bits keep more of a small pack
    #[arg(long, value_enum, value_name = "BITS", default_value_t, requires = "fuse")]
    fuse_bits: Bits,
    /// Share of each slice's update that must survive
    #[arg(long, value_name = "SHARE", default_value_t = 0.9, requires = "fuse")]
    fuse_keep: f64,
    /// Write the checkpoint however little survives
    #[arg(long, requires = "fuse")]
    fuse_anyway: bool,
    /// Replace a checkpoint that is at OUT
    #[arg(long, requires = "fuse")]
    force: bool,
}

/// What became of a fusion.
#[derive(serde::Serialize)]
pub struct Report {
    out: PathBuf,
    bits: Bits,
    required: f64,
    slices: Vec<Fate>,
    /// Slices of which too little survives.
    below: usize,
    /// Slices that storing moves by more than the update does.
    drowned: usize,
    /// Nothing was written.
    pub refused: bool,
    /// The directory, where one was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub written: Option<PathBuf>,
    /// From the base with its packs to the fused model.
    #[serde(skip_serializing_if = "Option::is_none")]
    probe: Option<Difference>,
}

impl FuseOptions {
    /// What can be seen to be wrong before the work.
    ///
    /// # Errors
    /// When the checkpoint cannot be written where it should be, or the share is none.
    pub fn check(&self, store: &Store) -> anyhow::Result<()> {
        let Some(out) = &self.fuse else { return Ok(()) };
        if !(0.0..=1.0).contains(&self.fuse_keep) {
            anyhow::bail!("--fuse-keep {}: a share is between 0 and 1", self.fuse_keep);
        }
        output::check_directory(store, "--fuse", out)
    }
}

/// Fuses, where that was asked for.
///
/// # Errors
/// When the base cannot be read or the checkpoint not be written.
pub fn run(o: &FuseOptions, f: &mut Fitted, text: &str, dry: bool, g: &Global) -> anyhow::Result<Option<Report>> {
    let Some(out) = &o.fuse else { return Ok(None) };
    crate::pack::fuse::free(out, &f.base.dir, o.force)?;
    let ids = f.tokenizer.encode(text, true)?;
    attach::attach(&mut f.model, &f.attachment);
    let attached = probe::logits(&f.model, &ids)?;
    let fusion = Fusion::new(&f.model, &f.base.dir, &f.attachment, o.fuse_bits)?;
    let bar = ui::bar(g, 1, "measuring slices");
    let mut progress = |done: usize, all: usize| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    };
    let slices = fusion.measure(&mut progress)?;
    let below = slices.iter().filter(|s| !s.holds(o.fuse_keep)).count();
    let drowned = slices.iter().filter(|s| s.drowns()).count();
    let refused = below > 0 && !o.fuse_anyway;
    let mut report = Report {
        out: out.clone(),
        bits: o.fuse_bits,
        required: o.fuse_keep,
        slices,
        below,
        drowned,
        refused,
        written: None,
        probe: None,
    };
    if !refused && !dry {
        bar.set_message("fusing slices");
        let (vocabulary, tokenizer) = (f.model.config().vocab_size, &f.tokenizer);
        let check = |dir: &std::path::Path| {
            let fused = Model::load(dir, &LoadOptions::default())?;
            probe::compare(&attached, &probe::logits(&fused, &ids)?, vocabulary, tokenizer)
        };
        report.probe = Some(fusion.write(out, o.force, &mut progress, check)?);
        report.written = Some(out.clone());
    }
    bar.finish_and_clear();
    Ok(Some(report))
}

/// Shows it.
pub fn text(r: &Report, g: &Global) {
    if !g.quiet {
        let mut worst: Vec<&Fate> = r.slices.iter().collect();
        worst.sort_by(|a, b| a.kept.total_cmp(&b.kept));
        let mut rows = table::plain(&["slice", "stored", "then", "update", "survives", "error"], &[3, 4, 5]);
        for s in worst.iter().take(LISTED) {
            rows.add_row([
                s.slice.clone(),
                s.from.clone(),
                s.to.clone(),
                format!("{:.2} %", 100.0 * s.update),
                format!("{:.1} %", 100.0 * s.kept),
                format!("{:.2}", s.error),
            ]);
        }
        say!("{rows}");
        if worst.len() > LISTED {
            say!("and {} slices of which more survives", worst.len() - LISTED);
        }
        say!("update: beside the weight; survives: share of it that is stored; error: beside the update");
    }
    let (n, all) = (r.below, r.slices.len());
    if n > 0 {
        note!(
            "{}: of {n} of {all} slices less than {:.0} % of the update survives{}",
            if r.refused { "refused" } else { "warning" },
            100.0 * r.required,
            if r.refused { remedy(r.bits) } else { "" }
        );
    }
    if r.drowned > 0 && !r.refused {
        note!(
            "warning: rounding moves {} of {all} slices by more than the update does; more bits (--fuse-bits) make it smaller",
            r.drowned
        );
    }
    if let Some(dir) = &r.written {
        say!("fused into {}; against the base with its packs:", dir.display());
        r.probe.iter().for_each(shown);
    }
}

fn remedy(bits: Bits) -> &'static str {
    match bits {
        Bits::Keep => {
            "; store these slices with more bits (--fuse-bits 8, or dense), keep the pack apart (--activate, or packs export), or pass --fuse-anyway"
        }
        Bits::Eight => {
            "; store these slices as floats (--fuse-bits dense), keep the pack apart (--activate, or packs export), or pass --fuse-anyway"
        }
        Bits::Dense => "; keep the pack apart (--activate, or packs export), or pass --fuse-anyway",
    }
}
