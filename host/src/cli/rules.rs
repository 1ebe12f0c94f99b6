//! The options about plugins that every verb which loads some takes.

use super::trust::TrustArgs;
use crate::model::paths;
use crate::plugin::{Grant, Loader, Rules};
use anyhow::{Context, bail};

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
    /// Another limit of plugins, by name: stack_kib, table_elements, instances, transfer_mib, log_lines,
    /// log_kib, plan_actions, text_kib, file_mib, compile_seconds, compile_mib
    #[arg(long, value_name = "NAME=NUMBER")]
    pub plugin_limit: Vec<String>,
    #[command(flatten)]
    pub trust: TrustArgs,
    /// Fuel one plugin call may burn, about one unit an instruction: a limit that is the same everywhere
    #[arg(long, value_name = "UNITS")]
    pub fuel: Option<u64>,
    /// Same input, same plan, on every machine; plugins run slower
    #[arg(long)]
    pub deterministic: bool,
    /// Give plugins something beyond the contract: clock, random, env=NAME, read=DIR
    #[arg(long, value_name = "WHAT")]
    pub grant: Vec<Grant>,
}

impl RuleArgs {
    /// These over `rules`.
    ///
    /// # Errors
    /// An unknown limit, no number, a rule out of range, or a key that is none.
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
            let Some(field) = rules.limit(name) else {
                let names: Vec<&str> = Rules::limit_names().collect();
                bail!("--plugin-limit: there is no limit {name:?}; there are {}", names.join(", "));
            };
            *field = number;
        }
        self.trust.over(&mut rules)?;
        rules.fuel = self.fuel.or(rules.fuel);
        rules.deterministic |= self.deterministic;
        for grant in &self.grant {
            if !rules.grants.contains(grant) {
                rules.grants.push(grant.clone());
            }
        }
        rules.check()?;
        Ok(rules)
    }

    /// A loader under these rules.
    ///
    /// # Errors
    /// As [`RuleArgs::over`].
    pub fn loader(&self) -> anyhow::Result<Loader> {
        Ok(loader(self.over(Rules::default())?))
    }
}

/// A loader that keeps compiled code in the cache directory of this user and compiles in a process of
/// this program.
pub fn loader(rules: Rules) -> Loader {
    let loader = Loader::new(rules, paths::cache_dir());
    match std::env::current_exe() {
        // A test of this crate is another program.
        Ok(program) if program.file_stem().is_some_and(|n| n == "plastic-host") => loader.compiled_by(program),
        _ => loader,
    }
}
