use super::state;
use crate::cli::Global;
use crate::output::{say, say_line};
use crate::store::Store;
use anyhow::Result;
use clap::{Args, ValueEnum};
use serde_json::Value;

#[derive(Debug, Args)]
pub(crate) struct List {
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    format: Format,
    /// Ids only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

impl List {
    pub(super) fn run(self, global: &Global) -> Result<()> {
        let containers = Store::new(global.root()).list()?;
        if self.quiet {
            return say(&containers
                .iter()
                .map(|container| format!("{}\n", container.id()))
                .collect::<String>());
        }
        let states: Vec<Value> = containers.iter().map(state::state).collect();
        match self.format {
            Format::Json => say_line(&serde_json::to_string(&states)?),
            Format::Table => say(&table(&states)),
        }
    }
}

fn table(states: &[Value]) -> String {
    const COLUMNS: [&str; 6] = ["id", "pid", "status", "bundle", "created", "owner"];
    let head: Vec<String> = COLUMNS.iter().map(|name| name.to_uppercase()).collect();
    let cell = |state: &Value, name: &str| match &state[name] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let rows = states.iter().map(|state| COLUMNS.iter().map(|name| cell(state, name)).collect());
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("   ").trim_end())
    };
    rows.iter().map(line).collect()
}
