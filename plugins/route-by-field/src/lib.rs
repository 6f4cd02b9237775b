//! `route-by-field`: sends each record to one of the deployment's targets by a field of its JSON value. The record goes as it is: key,
//! value, headers and timestamp.
//!
//! | key | what it does | default |
//! | --- | --- | --- |
//! | `field` | the path of the field, such as `device` or `user.country` | required |
//! | `routes` | values and topics: `phone=phones,tablet=tablets`, or as JSON: `{"phone":"phones"}` | required |
//! | `default` | the topic for all other records | none |
//! | `unmatched` | what becomes of all other records where there is no `default`: `reject` or `drop` | `reject` |
//!
//! "Other" records are those with another value in the field, without the field, with an array, an object or null in it, and those whose
//! value is null or not JSON. Values are compared as text: a string by what it says, a number in its shortest form (`7` for 7.0), `true`
//! and `false`.
//!
//! ```text
//! tidemill deploy consumer by-device --plugin route-by-field --topic plays --target phones --target others \
//!     --set field=device --set routes=phone=phones,tablet=phones --set default=others
//! ```

use std::collections::BTreeMap;

use tidemill_plugin::json::{Path, Raw, Reach, Selector, Value, entries};
use tidemill_plugin::prelude::*;

/// Sends records to targets by a field.
#[derive(Debug)]
pub struct RouteByField {
    path: Path,
    selector: Selector,
    routes: BTreeMap<Vec<u8>, Target>,
    other: Other,
    /// The field of the record at hand, kept for its memory.
    key: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Other {
    To(Target),
    Reject,
    Drop,
}

impl Transform for RouteByField {
    fn describe() -> Description {
        Description::new("Sends each record to one of several topics by a field of its JSON value.")
            .required("field", "the path of the field, such as device or user.country")
            .required(
                "routes",
                "values and topics: phone=phones,tablet=tablets, or as JSON: {\"phone\":\"phones\"}",
            )
            .optional("default", "the topic for all other records")
            .with_default(
                "unmatched",
                "all other records where there is no default: reject or drop",
                "reject",
            )
    }

    fn new(ctx: &Context) -> Result<Self, String> {
        let path: Path = ctx.parse("field")?;
        if !path.is_exact() {
            return Err(ctx.invalid("field", "it names one place: no *").into());
        }
        let selector =
            Selector::new(std::slice::from_ref(&path)).map_err(|error| ctx.invalid("field", error))?;
        let mut routes = BTreeMap::new();
        for (value, topic) in read_routes(ctx)? {
            if routes.insert(value.clone(), ctx.target(&topic)?).is_some() {
                let value = String::from_utf8_lossy(&value);
                return Err(ctx.invalid("routes", format_args!("{value:?} has two routes")).into());
            }
        }
        let unmatched = ctx.choice("unmatched", &[("reject", Other::Reject), ("drop", Other::Drop)])?;
        let other = match ctx.get("default") {
            Some(topic) => Other::To(ctx.target(topic)?),
            None => unmatched,
        };
        Ok(Self { path, selector, routes, other, key: Vec::new() })
    }

    fn fields(&self) -> Fields {
        Fields::ALL
    }

    fn transform(&mut self, record: &Record<'_>, out: &mut Emitter<'_>) -> Result<(), String> {
        match (self.route(record), self.other) {
            (Ok(target), _) | (Err(_), Other::To(target)) => out.forward(target),
            (Err(_), Other::Drop) => {}
            (Err(why), Other::Reject) => return Err(why),
        }
        Ok(())
    }
}

impl RouteByField {
    fn route(&mut self, record: &Record<'_>) -> Result<Target, String> {
        let value = record.value().ok_or("the value is null")?;
        let mut found: [Option<Raw<'_>>; 1] = [None];
        self.selector
            .find(value, Reach::UntilFound, &mut found)
            .map_err(|malformed| malformed.to_string())?;
        let field = found[0].ok_or_else(|| format!("the value has no field {}", self.path))?;
        self.key.clear();
        if !field.write_key(&mut self.key) {
            return Err(format!("the field {} is neither text nor a number, true or false", self.path));
        }
        self.routes.get(&self.key).copied().ok_or_else(|| {
            let shown: String = String::from_utf8_lossy(&self.key).chars().take(64).collect();
            format!("no route for {} {shown:?}", self.path)
        })
    }
}

/// Values with their topics.
fn read_routes(ctx: &Context) -> Result<Vec<(Vec<u8>, String)>, String> {
    let text = ctx.text("routes")?.trim();
    if text.starts_with('{') {
        let object = Raw::parse(text.as_bytes()).map_err(|error| ctx.invalid("routes", error))?;
        let topic = |value: Raw<'_>| match value.value() {
            Value::Text(topic) => Ok(topic.text().into_owned()),
            _ => Err(ctx.invalid("routes", "a topic stands in quotes")),
        };
        return entries(object)
            .into_iter()
            .map(|(value, route)| Ok((value.bytes().into_owned(), topic(route)?)))
            .collect();
    }
    text.split(',')
        .map(|route| match route.rsplit_once('=') {
            Some((value, topic)) => Ok((value.trim().as_bytes().to_vec(), topic.trim().to_owned())),
            None => Err(ctx.invalid("routes", "write value=topic,value=topic").into()),
        })
        .collect()
}

tidemill_plugin::export_transform!(RouteByField);

#[cfg(test)]
mod tests {
    use super::*;
    use tidemill_plugin::Transforming;
    use tidemill_plugin::testing::{ConsumerTest, Setup, TestRecord, batch_of};

    fn setup(config: &[(&str, &str)]) -> Result<ConsumerTest<Transforming<RouteByField>>, String> {
        let setup =
            Setup::new().target("phones").target("tablets").target("others").config("field", "device");
        config.iter().fold(setup, |setup, (key, value)| setup.config(key, value)).transform()
    }

    const ROUTES: (&str, &str) = ("routes", "phone=phones, tablet = tablets,7=phones,true=tablets");

    #[test]
    fn records_go_where_their_field_says() {
        let mut plugin = setup(&[ROUTES, ("default", "others")]).unwrap();
        let phone = TestRecord::new("k", r#"{"device":"phone"}"#).header("h", Some("v")).timestamp(5);
        let records = [
            phone.clone(),
            TestRecord::value(r#"{"device":"tab\u006cet"}"#),
            TestRecord::value(r#"{"device":7.0}"#),
            TestRecord::value(r#"{"device":true}"#),
            TestRecord::value(r#"{"device":"radio"}"#),
            TestRecord::value("not JSON"),
            TestRecord::tombstone("k"),
        ];
        let outcome = plugin.handle(&batch_of(records)).unwrap();
        assert_eq!((outcome.processed, outcome.rejections.len()), (7, 0));
        let phones = plugin.emitted("phones");
        assert_eq!(phones[0], phone.ordinal(0));
        let ordinals =
            |records: Vec<TestRecord>| records.iter().filter_map(|record| record.ordinal).collect::<Vec<_>>();
        assert_eq!(ordinals(phones), [0, 2]);
        assert_eq!(ordinals(plugin.emitted("tablets")), [1, 3]);
        assert_eq!(ordinals(plugin.emitted("others")), [4, 5, 6]);
    }

    #[test]
    fn records_without_a_route_are_refused_or_dropped() {
        let values = [
            r#"{"device":"radio"}"#,
            "{}",
            "",
            r#"{"device":[1]}"#,
            r#"{"device":null}"#,
            r#"{"device":"phone"}"#,
        ];
        let mut plugin = setup(&[ROUTES]).unwrap();
        let outcome = plugin.handle(&batch_of(values)).unwrap();
        let reasons: Vec<&str> =
            outcome.rejections.iter().map(|rejection| rejection.reason.as_str()).collect();
        assert_eq!(reasons[0], "no route for device \"radio\"");
        assert_eq!(reasons[1], "the value has no field device");
        assert!(reasons[2].starts_with("not JSON"));
        assert!(reasons[3].contains("neither text") && reasons[4].contains("neither text"));
        assert_eq!((reasons.len(), plugin.emitted("phones").len()), (5, 1));
        let mut plugin = setup(&[ROUTES, ("unmatched", "drop")]).unwrap();
        assert!(plugin.handle(&batch_of(values)).unwrap().rejections.is_empty());
    }

    #[test]
    fn routes_may_be_json() {
        let mut plugin = setup(&[("routes", r#"{"a,b=c":"phones","ü":"tablets"}"#)]).unwrap();
        plugin.handle(&batch_of([r#"{"device":"a,b=c"}"#, r#"{"device":"ü"}"#])).unwrap();
        assert_eq!((plugin.emitted("phones").len(), plugin.emitted("tablets").len()), (1, 1));
    }

    #[test]
    fn a_bad_configuration_is_refused() {
        let refused = |config: &[(&str, &str)]| setup(config).err().unwrap();
        assert!(refused(&[("routes", "phone=radios")]).contains("(phones, tablets, others)"));
        assert!(refused(&[("routes", "phone")]).contains("value=topic"));
        assert!(refused(&[("routes", "a=phones,a=tablets")]).contains("two routes"));
        assert!(refused(&[("routes", "{\"a\":1}")]).contains("in quotes"));
        assert!(refused(&[("routes", "{\"a\":")]).contains("not JSON"));
        assert!(refused(&[ROUTES, ("default", "radios")]).contains("not a target"));
        assert!(refused(&[]).contains("--set routes="));
    }
}
