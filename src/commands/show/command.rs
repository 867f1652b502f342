//! What `m2u show` shows: everything, or one device.
//!
//! Opens no listener; asks name servers only when told to.

use std::{io, net::IpAddr, process::ExitCode};

use tokio::{
    runtime,
    time::{Instant, timeout_at},
};

use super::{device, effective, routes};
use crate::{
    commands::print::print,
    config::{flags::ConfigArguments, problem::Summary, settings::Settings},
    control::{reload::Assembly, resolver::Resolver},
    limits,
    snapshot::Snapshot,
};

/// Arguments of `m2u show`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Which configuration to show.
    #[command(flatten)]
    pub config: ConfigArguments,

    /// Show only whose device this VPN address is, and what is stamped on its requests
    #[arg(long, value_name = "ADDRESS", help_heading = "What to show")]
    pub device: Option<IpAddr>,

    /// Look up the servers' names, and show the addresses they have now
    #[arg(long, help_heading = "What to show", conflicts_with = "device")]
    pub resolve: bool,
}

/// Shows the settings and routes, or one device: 0 shown, 1 refused or no device has the address.
pub fn execute(arguments: Arguments) -> ExitCode {
    let settings = match arguments.config.load() {
        Ok(settings) => settings,
        Err(problems) => {
            eprint!("{}", Summary(&problems));
            return ExitCode::FAILURE;
        }
    };
    let mut assembly = Assembly::default();
    if let Err(error) = assembly.adopt(&settings) {
        eprintln!("{}: {error}", arguments.config.config.display());
        return ExitCode::FAILURE;
    }
    let snapshot = match snapshot(&settings, &mut assembly, arguments.resolve) {
        Ok(snapshot) => snapshot,
        Err(error) => {
            eprintln!("the name servers cannot be asked: {error}");
            return ExitCode::FAILURE;
        }
    };
    let Some(address) = arguments.device else {
        let effective = effective::render(&settings);
        let routes = routes::render(&settings, &snapshot, arguments.resolve);
        return print(&format!("{effective}\n{routes}"));
    };
    let view = device::View {
        settings: &settings,
        assembly: &assembly,
        snapshot: &snapshot,
    };
    match view.render(address) {
        Some(text) => {
            let hint = settings.leases.is_some().then(|| leased(address));
            print(&(text + &hint.map(|hint| format!("\n{hint}\n")).unwrap_or_default()))
        }
        None if settings.leases.is_some() => {
            eprintln!(
                "{address} belongs to no device of the file. {}",
                leased(address)
            );
            ExitCode::FAILURE
        }
        None => {
            eprintln!("{address} belongs to no device: its requests are answered 403");
            ExitCode::FAILURE
        }
    }
}

/// Who knows more than the file.
fn leased(address: IpAddr) -> String {
    format!("Whether it is leased says: m2u lease list --address {address}")
}

/// The snapshot that `run` would begin with; without addresses of names unless they are `wanted`.
fn snapshot(settings: &Settings, assembly: &mut Assembly, wanted: bool) -> io::Result<Snapshot> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(async {
        let mut resolver = Resolver::new(settings.tuning.nameserver);
        if wanted {
            resolver.follow(assembly.names());
        }
        let by = Instant::now() + limits::DNS_FIRST_ANSWERS;
        while !resolver.is_settled() && timeout_at(by, resolver.events()).await.is_ok() {}
        assembly.first_snapshot(&resolver)
    }))
}
