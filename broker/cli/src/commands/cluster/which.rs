//! Which broker a command is about: its number alone, or behind `--broker`.

use clap::Args;

/// A broker's number, which may be given in either way.
#[derive(Debug, Clone, Copy, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct WhichBroker {
    /// Its number.
    #[arg(value_name = "ID", value_parser = clap::value_parser!(u32).range(1..))]
    id: Option<u32>,
    /// The same, as `tidemill cluster add` has it.
    #[arg(long = "broker", value_name = "ID", value_parser = clap::value_parser!(u32).range(1..))]
    named: Option<u32>,
}

/// As [`WhichBroker`], of a command that needs none.
#[derive(Debug, Clone, Copy, Args)]
#[group(required = false, multiple = false)]
pub(crate) struct MaybeBroker {
    /// The number of the broker that may join; where none is named, any number that no member has.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    broker: Option<u32>,
    /// The same, without --broker.
    #[arg(value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    id: Option<u32>,
}

impl WhichBroker {
    pub(super) fn number(self) -> u32 {
        // One of them is there: the group is required.
        self.id.or(self.named).unwrap_or_default()
    }
}

impl MaybeBroker {
    pub(super) fn number(self) -> Option<u32> {
        self.broker.or(self.id)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Needed {
        #[command(flatten)]
        which: WhichBroker,
    }

    #[derive(Debug, Parser)]
    struct Welcome {
        #[command(flatten)]
        which: MaybeBroker,
    }

    #[test]
    fn a_broker_is_named_in_either_way_and_once() {
        let needed = |arguments: &[&str]| {
            let arguments = ["x"].iter().chain(arguments);
            Needed::try_parse_from(arguments).map(|parsed| parsed.which.number())
        };
        assert_eq!(needed(&["4"]).expect("alone"), 4);
        assert_eq!(needed(&["--broker", "4"]).expect("named"), 4);
        needed(&[]).expect_err("none");
        needed(&["4", "--broker", "4"]).expect_err("twice");
        needed(&["0"]).expect_err("numbered from 1");
        let welcome = |arguments: &[&str]| {
            let arguments = ["x"].iter().chain(arguments);
            Welcome::try_parse_from(arguments).map(|parsed| parsed.which.number())
        };
        assert_eq!(welcome(&[]).expect("nobody"), None);
        assert_eq!(welcome(&["4"]).expect("alone"), Some(4));
        assert_eq!(welcome(&["--broker", "4"]).expect("named"), Some(4));
    }
}
