//! The options about plugins that every verb which loads some takes.

use crate::model::paths;
use crate::plugin::{Loader, Rules};
use anyhow::Context;

/// What plugins may do and use.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Plugins")]
pub struct RuleArgs {
    /// Seconds one plugin call may take [default: 10]
    #[arg(long, value_name = "SECONDS")]
    pub plugin_seconds: Option<u64>,
    /// Memory a plugin may use, MiB [default: 256]
    #[arg(long, value_name = "MIB")]
    pub plugin_memory: Option<u64>,
    /// Load plugins that are native libraries; they run with all your rights
    #[arg(long)]
    pub allow_native: bool,
    /// Run native libraries in a process of their own, so that their crash is an event
    #[arg(long)]
    pub isolate: bool,
    /// Another limit of plugins: stack_kib, table_elements, transfer_mib, log_lines, file_mib
    #[arg(long, value_name = "NAME=NUMBER")]
    pub plugin_limit: Vec<String>,
}

impl RuleArgs {
    /// These over `rules`.
    ///
    /// # Errors
    /// An unknown limit, no number, or a rule out of range.
    pub fn over(&self, mut rules: Rules) -> anyhow::Result<Rules> {
        if let Some(v) = self.plugin_seconds {
            rules.seconds = v;
        }
        if let Some(v) = self.plugin_memory {
            rules.memory_mib = v;
        }
        rules.allow_native |= self.allow_native;
        rules.isolate |= self.isolate;
        for text in &self.plugin_limit {
            let (name, number) = text
                .split_once('=')
                .with_context(|| format!("--plugin-limit {text:?} is not of the form name=number"))?;
            let number = number.parse().with_context(|| format!("--plugin-limit {name}: {number:?} is no number"))?;
            let field = match name {
                "seconds" => &mut rules.seconds,
                "memory_mib" => &mut rules.memory_mib,
                "stack_kib" => &mut rules.stack_kib,
                "table_elements" => &mut rules.table_elements,
                "transfer_mib" => &mut rules.transfer_mib,
                "log_lines" => &mut rules.log_lines,
                "file_mib" => &mut rules.file_mib,
                _ => anyhow::bail!(
                    "--plugin-limit: there is no limit {name:?}; there are stack_kib, table_elements, transfer_mib, log_lines, file_mib"
                ),
            };
            *field = number;
        }
        rules.check()?;
        Ok(rules)
    }

    /// A loader under these rules.
    ///
    /// # Errors
    /// As [`RuleArgs::over`].
    pub fn loader(&self) -> anyhow::Result<Loader> {
        Ok(Loader::new(self.over(Rules::default())?, paths::cache_dir()))
    }
}
