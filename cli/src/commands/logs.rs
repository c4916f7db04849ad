//! `longshore logs`: what a workload on a device says, or the device's agent.

use std::time::Duration;

use clap::Args;
use http_body_util::BodyExt as _;
use longshore_protocol::{DeviceName, api::LOG_ERROR};

use super::{Context, fleet};
use crate::{Error, Exit, duration::duration, output::Stream};

/// Read a device's logs.
#[derive(Args, Debug)]
#[command(after_help = "\
The device sends nothing that nobody asks for, and no faster than it is read. Where several
containers are read together, each line begins with whose it is.

Examples:
  longshore logs store-0001                        what its agent said of late
  longshore logs store-0001 till -f                follow the object `till`
  longshore logs store-0001 deployment/till -c web --tail 100
  longshore logs store-0001 job/backup --since 2h > backup.log")]
pub struct Logs {
    /// The device
    device: DeviceName,
    /// One of its objects: `till`, `deployment/till` or `shop/deployment/till` [default: the agent itself]
    object: Option<String>,
    /// Go on with what is said later
    #[arg(long, short)]
    follow: bool,
    /// Only so many of the last lines, of each container
    #[arg(long, value_name = "LINES")]
    tail: Option<u64>,
    /// Only what is no older than this, such as `10m`
    #[arg(long, value_name = "TIME", value_parser = duration)]
    since: Option<Duration>,
    /// One of the object's containers [default: all]
    #[arg(long, short, value_name = "NAME", requires = "object")]
    container: Option<String>,
}

impl Logs {
    fn query(&self) -> Vec<(&'static str, String)> {
        let pairs = [
            ("object", self.object.clone()),
            ("container", self.container.clone()),
            ("follow", self.follow.then(|| "true".to_owned())),
            ("tail", self.tail.map(|lines| lines.to_string())),
            ("since", self.since.map(|since| since.as_secs().to_string())),
        ];
        let given = pairs.into_iter();
        given
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }
}

pub(crate) async fn run(context: &Context, arguments: &Logs) -> Result<Exit, Error> {
    let api = context.api()?;
    let fleet = fleet(&api).await?;
    let mut body = api
        .logs(&fleet, &arguments.device, &arguments.query())
        .await?;
    let mut stdout = Stream::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            broke_off("the connection to the controller broke").because(error.without_url())
        })?;
        if let Some(why) = frame.trailers_ref().and_then(|it| it.get(LOG_ERROR)) {
            return Err(broke_off(&String::from_utf8_lossy(why.as_bytes())));
        }
        if let Some(data) = frame.data_ref()
            && !stdout.write(data)?
        {
            // `longshore logs … | head`: the reader has seen enough.
            break;
        }
    }
    Ok(Exit::Success)
}

fn broke_off(why: &str) -> Error {
    Error::unreachable(format!("the log broke off: {why}"))
        .hint("what was said meanwhile is not lost: ask again, with `--since` or `--tail`")
}
