//! What a broker counts of itself.

use tidemill_client::Client;

use crate::Outcome;

/// A metric's value: of one series, or summed over all labels where none are named; 0 where it was never counted. Of the broker that
/// answers: a client that uses no topic asks the one that it is connected to.
///
/// # Errors
/// No answer.
pub async fn metric(client: &Client, name: &str) -> Outcome<f64> {
    let text = client.metrics().await?;
    let of_metric = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = rest
            .strip_prefix(' ')
            .or_else(|| rest.starts_with('{').then(|| rest.rsplit_once(' '))?.map(|(_, v)| v))?;
        value.parse::<f64>().ok()
    });
    Ok(of_metric.sum())
}
