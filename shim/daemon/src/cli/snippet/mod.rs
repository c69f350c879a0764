//! `slipway config snippet`: what others' configuration needs to use us. Talks to no daemon.

use clap::{Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub(crate) enum Snippet {
    /// A runtime handler named "slipway" for containerd's CRI
    Containerd {
        /// containerd's major version
        #[arg(long, value_enum, default_value_t = Major::Two)]
        version: Major,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Major {
    #[value(name = "1")]
    One,
    #[value(name = "2")]
    Two,
}

impl Snippet {
    pub(crate) fn run(&self) {
        let Self::Containerd { version } = self;
        print!(
            "{}",
            match version {
                Major::One => include_str!("containerd-1.toml"),
                Major::Two => include_str!("containerd-2.toml"),
            }
        );
    }
}
