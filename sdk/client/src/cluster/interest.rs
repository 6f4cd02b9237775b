//! The topics whose metadata the brokers push: those that a producer or consumer uses, and of the others those that were named last.
//! Of what nobody uses and hardly anybody asks for no broker needs to tell.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tidemill_protocol::ErrorCode;
use tidemill_protocol::messages::{MetadataRequest, reply, request};
use tokio::sync::watch;

use super::metadata::TopicMetadata;
use super::pool::Cluster;
use super::request::Repeat;
use crate::{RequestError, ServerError};

/// Names that are listed though nobody uses them: of topics that were asked about, or whose producers and consumers are gone. Who
/// asked once mostly asks again.
const UNUSED_MAX: usize = 256;
/// What a broker takes of names in one request (docs/wire-protocol.md): so many, and so many bytes of them.
const ASKED_NAMES_MAX: usize = 10_000;
const ASKED_NAME_BYTES_MAX: usize = 512 << 10;
/// Answers about a topic from brokers that are behind, before the last of them is believed.
const STALE_ANSWERS_MAX: usize = 10;

/// The names of the topics whose metadata the brokers push.
pub(super) type InterestList = Arc<BTreeSet<Arc<str>>>;

/// Who uses which topic, and what the brokers are told of it.
#[derive(Debug, Default)]
pub(super) struct Interest {
    names: Mutex<Names>,
    /// All of them, a whole at a time. Changed under the lock above.
    list: watch::Sender<InterestList>,
}

#[derive(Debug, Default)]
struct Names {
    /// How many use each.
    used: HashMap<Arc<str>, usize>,
    /// Those that nobody uses, the one that was last used at the back.
    unused: VecDeque<Arc<str>>,
}

impl Interest {
    pub(super) fn list(&self) -> InterestList {
        Arc::clone(&self.list.borrow())
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<InterestList> {
        self.list.subscribe()
    }

    /// One more uses this topic.
    fn hold(&self, name: &str) -> Arc<str> {
        let mut names = self.names.lock();
        let listed = self.list.borrow().get(name).cloned();
        let is_new = listed.is_none();
        let name = listed.unwrap_or_else(|| name.into());
        *names.used.entry(Arc::clone(&name)).or_insert(0) += 1;
        names.unused.retain(|unused| *unused != name);
        if is_new {
            self.list.send_modify(|list| _ = Arc::make_mut(list).insert(Arc::clone(&name)));
        }
        name
    }

    /// One less does. Answers what is not listed any more for that.
    fn release(&self, name: &Arc<str>) -> Option<Arc<str>> {
        let mut names = self.names.lock();
        let count = names.used.get_mut(name)?;
        *count -= 1;
        if *count > 0 {
            return None;
        }
        names.used.remove(name);
        names.unused.push_back(Arc::clone(name));
        let out = if names.unused.len() > UNUSED_MAX { names.unused.pop_front() } else { None };
        self.take_out(out.as_slice());
        out
    }

    /// These topics are gone. Answers those that are not listed any more for that: the ones that nobody uses.
    pub(super) fn forget(&self, gone: &[Arc<str>]) -> Vec<Arc<str>> {
        if gone.is_empty() {
            return Vec::new();
        }
        let mut names = self.names.lock();
        let out: Vec<_> = names.unused.iter().filter(|name| gone.contains(*name)).cloned().collect();
        names.unused.retain(|name| !out.contains(name));
        self.take_out(&out);
        out
    }

    fn take_out(&self, out: &[Arc<str>]) {
        if !out.is_empty() {
            self.list.send_modify(|list| {
                let list = Arc::make_mut(list);
                for name in out {
                    list.remove(name);
                }
            });
        }
    }
}

/// The names, in parts of which each is as large as a broker takes at once. One part at least.
pub(super) fn parts(list: &BTreeSet<Arc<str>>) -> Vec<Vec<String>> {
    let (mut parts, mut part, mut bytes) = (Vec::new(), Vec::new(), 0);
    for name in list {
        let is_full = part.len() == ASKED_NAMES_MAX || bytes + name.len() > ASKED_NAME_BYTES_MAX;
        if is_full && !part.is_empty() {
            parts.push(std::mem::take(&mut part));
            bytes = 0;
        }
        bytes += name.len();
        part.push(name.to_string());
    }
    parts.push(part);
    parts
}

/// Somebody uses a topic: as long as this lives, the brokers push what becomes of it.
#[derive(Debug)]
pub(crate) struct TopicInUse {
    cluster: Arc<Cluster>,
    name: Arc<str>,
}

impl TopicInUse {
    pub(crate) const fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    pub(crate) const fn name(&self) -> &Arc<str> {
        &self.name
    }
}

impl Drop for TopicInUse {
    fn drop(&mut self) {
        let out = self.cluster.interest.release(&self.name);
        self.cluster.unlearn(out.as_slice());
    }
}

impl Cluster {
    /// The topic, asked for where it is not known yet. Where nobody uses it, its changes are pushed until enough others were named.
    pub(crate) async fn topic(self: &Arc<Self>, name: &str) -> Result<Arc<TopicMetadata>, RequestError> {
        let (topic, _in_use) = self.topic_in_use(name).await?;
        Ok(topic)
    }

    /// The topic, asked for where it is not known yet, and what keeps its changes coming.
    pub(crate) async fn topic_in_use(
        self: &Arc<Self>,
        name: &str,
    ) -> Result<(Arc<TopicMetadata>, TopicInUse), RequestError> {
        let in_use = TopicInUse { cluster: Arc::clone(self), name: self.interest.hold(name) };
        self.begin_scouting();
        let topic = match self.known_topic(name) {
            Some(topic) => topic,
            None => self.refresh_topic(name).await?,
        };
        Ok((topic, in_use))
    }

    /// The topic as the cluster knows it now. Nothing is learned of one that is not listed.
    async fn refresh_topic(self: &Arc<Self>, name: &str) -> Result<Arc<TopicMetadata>, RequestError> {
        let mut backoff = self.backoff();
        for asked in 1.. {
            let body = request::Body::Metadata(MetadataRequest { topics: vec![name.to_owned()], all: false });
            let reply::Body::Metadata(metadata) = self.call(body, Repeat::Freely).await? else {
                return Err(RequestError::BadAnswer("expected metadata".to_owned()));
            };
            let is_behind = metadata.version < self.known().newest;
            let said = metadata.topics.iter().find(|info| info.name == name);
            let refused = crate::error::server_error(said.and_then(|info| info.error.clone()));
            self.learn(metadata);
            if let Some(topic) = self.known_topic(name) {
                return Ok(topic);
            }
            // Perhaps it has not heard of the topic yet.
            if is_behind && asked < STALE_ANSWERS_MAX {
                tokio::time::sleep(backoff.pause()).await;
                continue;
            }
            refused?;
            break;
        }
        Err(RequestError::Server(ServerError {
            code: ErrorCode::UnknownTopic.code(),
            message: format!("there is no topic '{name}'; `tidemill topic list` shows the topics"),
            retriable: false,
            rejections: Vec::new(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names a topic as a single question does.
    fn ask(interest: &Interest, number: usize) -> Option<Arc<str>> {
        let name = interest.hold(&format!("asked {number}"));
        interest.release(&name)
    }

    #[test]
    fn what_is_used_is_listed_and_of_what_is_not_the_last() {
        let interest = Interest::default();
        let plays = interest.hold("plays");
        let again = interest.hold("plays");
        for number in 0..UNUSED_MAX {
            assert_eq!(ask(&interest, number), None);
        }
        assert_eq!(ask(&interest, 0), None, "now it is one of the last");
        assert_eq!(ask(&interest, UNUSED_MAX).as_deref(), Some("asked 1"), "the one that nobody named since");
        let list = interest.list();
        assert_eq!(list.len(), UNUSED_MAX + 1);
        assert!(list.contains("plays") && list.contains("asked 0") && !list.contains("asked 1"));

        assert_eq!(interest.release(&again), None);
        for number in 0..2 * UNUSED_MAX {
            ask(&interest, number);
        }
        assert!(interest.list().contains("plays"), "one of two still uses it");
        interest.release(&plays);
        assert!(interest.list().contains("plays"), "it is the last that was used");
        for number in 0..2 * UNUSED_MAX {
            ask(&interest, number);
        }
        assert!(!interest.list().contains("plays"));
        assert_eq!(interest.list().len(), UNUSED_MAX);
    }

    #[test]
    fn a_topic_that_is_gone_is_listed_where_it_is_used() {
        let interest = Interest::default();
        let used = interest.hold("used");
        let unused = interest.hold("unused");
        interest.release(&unused);
        let gone = [Arc::clone(&used), Arc::clone(&unused), "never named".into()];
        assert_eq!(interest.forget(&gone), [Arc::clone(&unused)]);
        assert_eq!(*interest.list(), BTreeSet::from([used]));
        assert!(interest.forget(&gone).is_empty());
        // It may be there again.
        interest.hold("unused");
        assert!(interest.list().contains("unused"));
    }

    #[test]
    fn a_list_is_asked_about_in_parts_that_a_broker_takes() {
        assert_eq!(parts(&BTreeSet::new()), [Vec::<String>::new()]);
        let list = |count: usize, length: usize| -> BTreeSet<Arc<str>> {
            (0..count).map(|number| format!("{number:0>length$}").into()).collect()
        };
        let sizes = |list: &BTreeSet<Arc<str>>| -> Vec<usize> { parts(list).iter().map(Vec::len).collect() };
        assert_eq!(sizes(&list(ASKED_NAMES_MAX, 5)), [ASKED_NAMES_MAX]);
        let many = list(2 * ASKED_NAMES_MAX + 1, 5);
        assert_eq!(sizes(&many), [ASKED_NAMES_MAX, ASKED_NAMES_MAX, 1]);
        let all: BTreeSet<Arc<str>> = parts(&many).into_iter().flatten().map(Arc::from).collect();
        assert_eq!(all, many);

        let long = parts(&list(5_000, 249));
        assert!(long.len() > 1, "too long together");
        for part in &long {
            assert!(part.iter().map(String::len).sum::<usize>() <= ASKED_NAME_BYTES_MAX);
        }
        // No topic has such a name. It does not keep others from being asked for.
        let endless: Arc<str> = "x".repeat(ASKED_NAME_BYTES_MAX + 1).into();
        let list: BTreeSet<Arc<str>> = BTreeSet::from(["plays".into(), endless, "zebra".into()]);
        assert_eq!(sizes(&list), [1, 1, 1]);
    }
}
