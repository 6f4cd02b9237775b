//! Keeps the events of one device.

use tidemill_plugin::prelude::*;

struct OnlyDevice {
    device: String,
}

impl Filter for OnlyDevice {
    fn describe() -> Description {
        Description::new("Keeps the events of one device.").required("device", "the device to keep, such as phone")
    }

    fn new(ctx: &Context) -> Result<Self, String> {
        Ok(Self { device: ctx.text("device")?.to_owned() })
    }

    fn keep(&self, record: &Record<'_>) -> bool {
        record.json_field("device").is_some_and(|device| device == self.device.as_str())
    }
}

tidemill_plugin::export_filter!(OnlyDevice);

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_plugin::testing::Setup;

    #[test]
    fn keeps_one_device() {
        let filter = Setup::new().config("device", "phone").filter::<OnlyDevice>().unwrap();
        assert!(filter.keeps(r#"{"device":"phone","song":1}"#));
        assert!(!filter.keeps(r#"{"device":"tablet","song":1}"#));
        assert!(!filter.keeps("not JSON"));
    }

    #[test]
    fn a_device_must_be_given() {
        let refused = Setup::new().filter::<OnlyDevice>().err().unwrap();
        assert!(refused.contains("--set device="), "{refused}");
    }
}
