//! The small API server of Kubernetes for scripts: `longshore-api-server DIR` writes a kubeconfig there, and serves until
//! it is ended.

use std::{env, path::Path};

use anyhow::{Context as _, Result};
use longshore_e2e::kubernetes::ApiServer;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let directory = env::args_os()
        .nth(1)
        .context("where to write the kubeconfig?")?;
    let server = ApiServer::start_with_tls().await;
    server.kubeconfig(Path::new(&directory));
    std::future::pending().await
}
