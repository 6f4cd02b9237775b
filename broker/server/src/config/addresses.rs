//! Addresses that settings name, as text: hosts are looked up when they are needed, their form stands from the beginning.

/// What is wrong with the form of `HOST:PORT`.
pub(super) fn fault_of(address: &str) -> Option<String> {
    let said = |what: &str| Some(format!("{address:?} {what}: HOST:PORT is wanted, such as 10.0.0.1:9640"));
    let Some((host, port)) = address.rsplit_once(':') else { return said("names no port") };
    if host.is_empty() {
        return said("names no host");
    }
    if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
        return said("is an IPv6 address without brackets, or has a colon too many");
    }
    match port.parse::<u16>() {
        Ok(0) | Err(_) => said("names no port from 1 to 65535"),
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for fine in ["127.0.0.1:9640", "log2.example:1", "[::1]:9640"] {
            assert_eq!(fault_of(fine), None, "{fine}");
        }
        for (wrong, said) in [
            ("127.0.0.1", "no port"),
            (":9640", "no host"),
            ("::1:9640", "brackets"),
            ("[::1]", "brackets"),
            ("log2:x", "from 1 to 65535"),
            ("log2:0", "from 1 to 65535"),
            ("", "no port"),
        ] {
            assert!(fault_of(wrong).is_some_and(|fault| fault.contains(said)), "{wrong}");
        }
    }
}
