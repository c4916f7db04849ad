//! `longshore status`: how everything does.

use super::{Context, fleets};
use crate::{Error, Exit, output::pairs};

pub(crate) async fn run(context: &Context) -> Result<Exit, Error> {
    let api = context.api()?;
    let status = api.status().await?;
    context.output.show(&status, |status| {
        let controller = pairs([
            ("Controller", Some(api.server().to_string())),
            ("Version", Some(status.version.clone())),
            ("Renderer", Some(status.renderer.clone())),
            ("Store", Some(status.store.clone())),
            ("Tenant", Some(api.tenant().to_string())),
        ]);
        if status.fleets.is_empty() {
            return format!(
                "{controller}\n\nNo fleet yet. Add one: longshore fleets add NAME --repo URL"
            );
        }
        format!(
            "{controller}\n\n{}",
            fleets::table(&status.fleets, context.now)
        )
    })
}
