//! Drives a Workload API with the spiffe crate, as a Rust workload would; prints one JSON line per observation.
//!
//!     workload unix:///path watch 3
//!     workload unix:///path jwt AUDIENCE

use std::error::Error;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use spiffe::{BundleSource, JwtSvid, WorkloadApiClient, X509Source};
use x509_parser::prelude::{FromDer, X509Certificate};

type Outcome = Result<(), Box<dyn Error>>;

const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [address, "watch", updates] => watch(address, updates.parse()?).await,
        [address, "jwt", audience] => jwt(address, audience).await,
        _ => Err("usage: workload ADDRESS watch UPDATES | ADDRESS jwt AUDIENCE".into()),
    }
}

async fn watch(address: &str, updates: usize) -> Outcome {
    let source = X509Source::builder().endpoint(address).build().await?;
    let mut news = source.updated();
    for left in (0..updates).rev() {
        show(&source)?;
        if left > 0 {
            tokio::time::timeout(PATIENCE, news.changed()).await??;
        }
    }
    source.shutdown().await;
    Ok(())
}

/// Prints the SVID of now, after its signature has been verified with the bundle.
fn show(source: &X509Source) -> Outcome {
    let svid = source.svid()?;
    let bundle = source
        .bundle_for_trust_domain(svid.spiffe_id().trust_domain())?
        .ok_or("no bundle of the trust domain")?;
    let (_, leaf) = X509Certificate::from_der(svid.leaf().as_bytes())?;
    let authority = bundle.authorities().first().ok_or("an empty bundle")?;
    let (_, authority) = X509Certificate::from_der(authority.as_bytes())?;
    leaf.verify_signature(Some(authority.public_key()))?;
    let seen = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    println!(
        "{}",
        json!({
            "event": "update",
            "id": svid.spiffe_id().to_string(),
            "serial": leaf.raw_serial_as_string(),
            "not_after": leaf.validity().not_after.timestamp(),
            "seen": seen as u64,
        })
    );
    Ok(())
}

async fn jwt(address: &str, audience: &str) -> Outcome {
    let client = WorkloadApiClient::connect_to(address).await?;
    let svid = client.fetch_jwt_svid([audience], None).await?;
    let bundles = client.fetch_jwt_bundles().await?;
    let local = JwtSvid::parse_and_validate(svid.token(), &bundles, &[audience])?;
    let remote = client.validate_jwt_token(audience, svid.token()).await?;
    if local.spiffe_id() != remote.spiffe_id() {
        return Err("the agent and the bundle say different things of one token".into());
    }
    println!("{}", json!({"event": "jwt", "id": local.spiffe_id().to_string(), "audience": local.audience()}));
    Ok(())
}
