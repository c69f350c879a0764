//! `slipway registry explain REF`: what a pull would read and ask, and what the answers are. Needs no daemon.

use anyhow::Result;
use slipway_images::{EndpointAsked, Explanation, PolicyTold, explain};

use super::output::{Output, json, print};
use crate::config::ServeArgs;

/// `slipway registry`
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Say which files a pull of this image reads, which servers it asks in which order, and what they answer
    Explain {
        /// Reference: HOST/NAME[:TAG][@DIGEST]
        #[arg(value_name = "REF")]
        image: String,
        #[command(flatten)]
        serve: ServeArgs,
    },
}

impl Command {
    pub(crate) async fn run(&self, output: Output) -> Result<()> {
        let Self::Explain { image, serve } = self;
        let (file, _) = crate::config::look(serve)?;
        let (policy, _) = crate::config::image_policy(serve)?;
        let told = explain(image, &file.images.registries(), &policy).await?;
        match output {
            Output::Json => json(&told),
            Output::Table => print(&text(&told)),
        }
    }
}

fn text(told: &Explanation) -> String {
    let mut text = format!("{}\n\nfiles, the first that is there counts:\n", told.reference);
    if told.files.is_empty() {
        text += "  none: images.hosts_dirs is empty\n";
    }
    text.extend(told.files.iter().map(|file| format!("  {}: {}\n", file.path, file.outcome)));
    text += "\nservers, in the order in which they are asked:\n";
    text.extend(told.endpoints.iter().enumerate().map(|(n, endpoint)| of_endpoint(n + 1, endpoint)));
    text + &of_policy(&told.policy)
}

fn of_policy(told: &PolicyTold) -> String {
    let mut text = "\npolicy (images.policy):\n".to_owned();
    if let Some(prefix) = &told.prefix {
        text += &format!("  the rule for {prefix}: {}\n", told.rule);
    }
    text.extend(told.keys.iter().map(|key| format!("  key: {key}\n")));
    if !told.identity.is_empty() {
        text += &format!("  signatures must be for the {}\n", told.identity);
    }
    text + &match &told.outcome {
        Ok(why) => format!("  accepted: {why}\n"),
        Err(why) => format!("  refused: {why}\n"),
    }
}

fn of_endpoint(number: usize, endpoint: &EndpointAsked) -> String {
    let EndpointAsked { url, role, capabilities, tls, credentials, answer, milliseconds } = endpoint;
    let mut text = format!("  {number}. {url} ({role}; for {})\n", capabilities.join(", "));
    text.extend(tls.iter().map(|line| format!("     {line}\n")));
    text += &format!("     credentials: {credentials}\n");
    text + &match answer {
        Ok(digest) => format!("     has it: {digest} ({milliseconds} ms)\n"),
        Err(why) => format!("     {why} ({milliseconds} ms)\n"),
    }
}
