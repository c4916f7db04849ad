//! `longshore tenants`: the isolation boundary.

use clap::Subcommand;
use longshore_protocol::{
    TenantName,
    api::{CreateTenant, CreatedTenant},
};

use super::Context;
use crate::{
    Error, Exit,
    output::{Table, pairs, say},
    text::age,
};

/// Look after tenants.
#[derive(Debug, Subcommand)]
pub enum Tenants {
    /// List the tenants
    List,
    /// Make a tenant, and print an API token for it once
    Create {
        /// Its name: lower-case letters, digits and `-`
        name: TenantName,
    },
}

pub(crate) async fn run(context: &Context, command: Tenants) -> Result<Exit, Error> {
    let api = context.api()?;
    match command {
        Tenants::List => {
            let tenants = api.tenants().await?;
            context.output.show(&tenants, |tenants| {
                let mut table = Table::new(&["NAME", "AGE"]);
                for tenant in &tenants.items {
                    table.row([tenant.name.to_string(), age(context.now, tenant.created_at)]);
                }
                table.render()
            })
        }
        Tenants::Create { name } => {
            let created = api.create_tenant(&CreateTenant { name }).await?;
            context
                .output
                .show(&created, |CreatedTenant { name, api_token }| {
                    pairs([
                        ("Tenant", Some(name.to_string())),
                        ("API token", Some(api_token.clone())),
                    ])
                })?;
            say("the API token is shown this once");
            Ok(Exit::Success)
        }
    }
}
