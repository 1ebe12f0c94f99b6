//! The pack a verb works on: a word of the command line, or `--name` as mlx-plastic-rank has it.

/// Names one pack.
#[derive(clap::Args, Debug)]
pub struct OnePack {
    /// Name of the pack
    #[arg(value_name = "PACK", required_unless_present = "name")]
    pack: Option<String>,
    /// The same
    #[arg(long, value_name = "PACK", conflicts_with = "pack")]
    name: Option<String>,
}

impl OnePack {
    /// The name; one of the two is there.
    pub fn get(&self) -> &str {
        self.pack.as_deref().or(self.name.as_deref()).unwrap_or_default()
    }
}
