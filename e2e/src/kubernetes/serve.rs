//! The double's HTTP: paths to deeds, and watches.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use serde_json::{Value, json};

use super::{
    Call, World,
    kinds::Kind,
    logs::Voice,
    store::{At, Done, Refused, Store, not_found, status},
};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The connection breaks instead of an answer.
#[derive(Debug)]
pub struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut")
    }
}

impl std::error::Error for Cut {}

struct Asked {
    method: Method,
    path: Vec<String>,
    query: Vec<(String, String)>,
    partial: bool,
    body: Value,
}

impl Asked {
    fn of(&self, name: &str) -> Option<&str> {
        let found = self.query.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    fn is(&self, name: &str) -> bool {
        self.of(name)
            .is_some_and(|value| value == "true" || value == "1")
    }
}

/// Answers one request.
pub async fn answer(world: Arc<World>, request: Request<Incoming>) -> Result<Response<Body>, Cut> {
    let accept = request
        .headers()
        .get(header::ACCEPT)
        .and_then(|it| it.to_str().ok());
    let partial = accept.is_some_and(|accept| accept.contains("as=PartialObjectMetadata"));
    let token = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|it| it.to_str().ok());
    let known =
        world.tls.is_some() || token == Some(&format!("Bearer {}", *world.token.lock().unwrap()));
    let url: url::Url = format!("http://double{}", request.uri()).parse().unwrap();
    let decode = |segment: &str| {
        let pair = format!("a={}", segment.replace('+', "%2B"));
        url::form_urlencoded::parse(pair.as_bytes())
            .next()
            .unwrap()
            .1
            .into_owned()
    };
    let asked = Asked {
        method: request.method().clone(),
        path: url.path_segments().unwrap().map(decode).collect(),
        query: url.query_pairs().into_owned().collect(),
        partial,
        body: Value::Null,
    };
    let body = request
        .into_body()
        .collect()
        .await
        .map_err(|_broken| Cut)?
        .to_bytes();
    let asked = Asked {
        body: serde_json::from_slice(&body).unwrap_or_default(),
        ..asked
    };
    if world.is_cut(false) {
        return Err(Cut);
    }
    let answered = if known {
        route(&world, &asked)
    } else {
        Err(status(401, "Unauthorized", "Unauthorized", &json!([])))
    };
    world.progressed();
    if world.is_cut(true) {
        return Err(Cut);
    }
    Ok(match answered {
        Ok(Answer::Value(code, value)) => json_answer(code, &value),
        Ok(Answer::Watch(watch)) => watch_answer(&world, watch),
        Ok(Answer::Log(voice)) => {
            let tail = asked.of("tailLines").map(|it| it.parse().unwrap());
            world.voices.answer(voice, asked.is("follow"), tail)
        }
        Err(Refused(code, body)) => json_answer(code, &body),
    })
}

enum Answer {
    Value(u16, Value),
    Watch(Watch),
    Log(Voice),
}

struct Watch {
    kind: Kind,
    namespace: String,
    selector: Option<String>,
    partial: bool,
    from: u64,
    seconds: u64,
    /// Watches that began before this are ended.
    era: u64,
}

fn json_answer(code: u16, value: &Value) -> Response<Body> {
    Response::builder()
        .status(StatusCode::from_u16(code).unwrap())
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(value.to_string())).boxed_unsync())
        .unwrap()
}

fn route(world: &World, asked: &Asked) -> Result<Answer, Refused> {
    let path: Vec<_> = asked.path.iter().map(String::as_str).collect();
    let (group, version, rest) = match path.as_slice() {
        ["version"] => {
            let version = json!({"major": "1", "minor": "34", "gitVersion": "v1.34.1"});
            return Ok(Answer::Value(200, version));
        }
        [
            "apis",
            "authorization.k8s.io",
            "v1",
            "selfsubjectaccessreviews",
        ] if asked.method == Method::POST => {
            return Ok(review(world, asked));
        }
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        ["apis"] => return Ok(groups(world, asked, None)),
        ["apis", group] => return Ok(groups(world, asked, Some(group))),
        _ => return Err(no_such_path()),
    };
    let (namespace, plural, name) = match rest {
        ["namespaces", namespace, "pods", pod, "log"] => {
            return log(world, asked, namespace, pod);
        }
        [] => return discovery(world, asked, group, version),
        ["namespaces", namespace, plural, rest @ ..] => {
            (*namespace, *plural, rest.first().copied())
        }
        [plural, rest @ ..] => ("", *plural, rest.first().copied()),
    };
    let kind = {
        let store = world.store.lock().unwrap();
        let kind = store
            .kind(group, plural)
            .filter(|kind| kind.version == version);
        kind.cloned().ok_or_else(no_such_path)?
    };
    let verb = match (&asked.method, name) {
        (&Method::GET, Some(_)) => "get",
        (&Method::GET, None) if asked.is("watch") => "watch",
        (&Method::GET, None) => "list",
        (&Method::PATCH, Some(_)) => "patch",
        (&Method::DELETE, Some(_)) => "delete",
        _ => {
            return Err(status(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
                &json!([]),
            ));
        }
    };
    world.count(Call {
        verb: verb.to_owned(),
        resource: plural.to_owned(),
        namespace: namespace.to_owned(),
        name: name.unwrap_or_default().to_owned(),
        force: asked.is("force"),
    });
    world.allow(verb, &kind, namespace, name)?;
    let at: At = (
        group.to_owned(),
        plural.to_owned(),
        namespace.to_owned(),
        name.unwrap_or_default().to_owned(),
    );
    match verb {
        "list" => list(world, asked, &kind, namespace).map(|list| Answer::Value(200, list)),
        "watch" => Ok(Answer::Watch(Watch {
            kind,
            namespace: namespace.to_owned(),
            selector: asked.of("labelSelector").map(str::to_owned),
            partial: asked.partial,
            from: asked.of("resourceVersion").unwrap().parse().unwrap(),
            seconds: asked.of("timeoutSeconds").unwrap().parse().unwrap(),
            era: *world.era.borrow(),
        })),
        "get" => {
            let store = world.store.lock().unwrap();
            let object = store
                .objects
                .get(&at)
                .ok_or_else(|| not_found(plural, &at.3))?;
            Ok(Answer::Value(
                200,
                reduced(Store::shown(object), asked.partial),
            ))
        }
        "patch" => patch(world, asked, &kind, &at),
        _ => {
            let deleted = world
                .store
                .lock()
                .unwrap()
                .delete(&at, &asked.body["preconditions"])?;
            Ok(Answer::Value(200, deleted))
        }
    }
}

/// Whether whoever asks may do what the review is about, by the same rules as for the deed itself.
fn review(world: &World, asked: &Asked) -> Answer {
    let of = |name: &str| {
        let attributes = &asked.body["spec"]["resourceAttributes"];
        attributes[name].as_str().unwrap_or_default().to_owned()
    };
    let denied = world.denied.lock().unwrap();
    let allowed = !denied.contains(&(of("verb"), of("resource")));
    let mut review = asked.body.clone();
    review["status"] = json!({"allowed": allowed});
    Answer::Value(201, review)
}

/// The log of one container, which has to be named where there are several.
fn log(world: &World, asked: &Asked, namespace: &str, pod: &str) -> Result<Answer, Refused> {
    world.count(Call {
        verb: "get".to_owned(),
        resource: "pods/log".to_owned(),
        namespace: namespace.to_owned(),
        name: pod.to_owned(),
        force: false,
    });
    let denied = ("get".to_owned(), "pods/log".to_owned());
    if world.denied.lock().unwrap().contains(&denied) {
        let message = format!(
            "pods {pod:?} is forbidden: User \"longshore\" cannot get resource \"pods/log\" in API group \"\" in \
             the namespace {namespace:?}"
        );
        return Err(status(403, "Forbidden", &message, &json!([])));
    }
    let at = (
        String::new(),
        "pods".to_owned(),
        namespace.to_owned(),
        pod.to_owned(),
    );
    let store = world.store.lock().unwrap();
    let object = store
        .objects
        .get(&at)
        .ok_or_else(|| not_found("pods", pod))?;
    let containers = Store::shown(object)["spec"]["containers"].clone();
    let all = containers.as_array().into_iter().flatten();
    let all: Vec<_> = all.filter_map(|it| it["name"].as_str()).collect();
    let wanted = asked.of("container").or(match all.as_slice() {
        [only] => Some(*only),
        _ => None,
    });
    let Some(container) = wanted.filter(|name| all.contains(name)) else {
        let message = format!("container {wanted:?} is not valid for pod {pod}");
        return Err(status(400, "BadRequest", &message, &json!([])));
    };
    Ok(Answer::Log((at.2, at.3, container.to_owned())))
}

fn patch(world: &World, asked: &Asked, kind: &Kind, at: &At) -> Result<Answer, Refused> {
    let bad = |message: &str| Err(status(400, "BadRequest", message, &json!([])));
    let metadata = &asked.body["metadata"];
    if metadata["name"] != at.3.as_str() {
        return bad("the name of the object does not match the name on the URL");
    }
    if kind.namespaced && metadata["namespace"].as_str().is_some_and(|it| it != at.2) {
        return bad(
            "the namespace of the provided object does not match the namespace sent on the request",
        );
    }
    if !metadata["managedFields"].is_null() {
        return bad("metadata.managedFields must be nil");
    }
    let exists = world.store.lock().unwrap().objects.contains_key(at);
    if !exists {
        world.allow("create", kind, &at.2, Some(&at.3))?;
    }
    let Some(manager) = asked.of("fieldManager") else {
        return bad("fieldManager is required for apply patch");
    };
    let applied = world
        .store
        .lock()
        .unwrap()
        .apply(manager, &asked.body, asked.is("force"));
    let (created, object) = applied?;
    Ok(Answer::Value(
        if created { 201 } else { 200 },
        reduced(object, asked.partial),
    ))
}

fn list(world: &World, asked: &Asked, kind: &Kind, namespace: &str) -> Result<Value, Refused> {
    let store = world.store.lock().unwrap();
    let (version, from) = match asked.of("continue") {
        None => (store.version, 0),
        Some(token) => {
            let (version, from) = token.split_once(':').unwrap();
            let version: u64 = version.parse().unwrap();
            if version < store.compacted {
                return Err(status(
                    410,
                    "Expired",
                    "The provided continue parameter is too old to display a consistent list result.",
                    &json!([]),
                ));
            }
            (version, from.parse().unwrap())
        }
    };
    let selected: Vec<_> = store
        .objects
        .iter()
        .filter(|(at, _)| at.0 == kind.group && at.1 == kind.plural)
        .filter(|(at, _)| namespace.is_empty() || at.2 == namespace)
        .map(|(_, managed)| Store::shown(managed))
        .filter(|object| matches(object, asked.of("labelSelector")))
        .collect();
    let limit = asked
        .of("limit")
        .map_or(usize::MAX, |limit| limit.parse().unwrap());
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if from + limit.min(selected.len()) < selected.len() {
        metadata["continue"] = format!("{version}:{}", from + limit).into();
    }
    let items: Vec<_> = selected
        .into_iter()
        .skip(from)
        .take(limit)
        .map(|object| reduced(object, asked.partial))
        .collect();
    Ok(
        json!({"kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(),
        "metadata": metadata, "items": items}),
    )
}

fn matches(object: &Value, selector: Option<&str>) -> bool {
    let labels = &object["metadata"]["labels"];
    let mut terms = selector.into_iter().flat_map(|it| it.split(','));
    terms.all(|term| match term.split_once('=') {
        None => !labels[term].is_null(),
        Some((label, value)) => labels[label] == value,
    })
}

fn reduced(mut object: Value, partial: bool) -> Value {
    if partial {
        let metadata = object["metadata"].take();
        return json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata});
    }
    object
}

fn discovery(world: &World, asked: &Asked, group: &str, version: &str) -> Result<Answer, Refused> {
    world.count(Call::discovery(&asked.path));
    let store = world.store.lock().unwrap();
    let kinds = store
        .kinds
        .iter()
        .filter(|kind| kind.group == group && kind.version == version);
    let resources: Vec<_> = kinds
        .flat_map(|kind| {
            let verbs = ["create", "delete", "get", "list", "patch", "update", "watch"];
            let resource = json!({"name": kind.plural, "singularName": kind.kind.to_lowercase(),
                "namespaced": kind.namespaced, "kind": kind.kind, "verbs": verbs});
            let status = json!({"name": format!("{}/status", kind.plural), "singularName": "",
                "namespaced": kind.namespaced, "kind": kind.kind, "verbs": ["get", "patch", "update"]});
            [resource, status]
        })
        .collect();
    if resources.is_empty() {
        return Err(no_such_path());
    }
    let group_version = asked.path[1..].join("/");
    Ok(Answer::Value(
        200,
        json!({"kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": group_version, "resources": resources}),
    ))
}

fn groups(world: &World, asked: &Asked, only: Option<&str>) -> Answer {
    world.count(Call::discovery(&asked.path));
    let store = world.store.lock().unwrap();
    let mut groups: Vec<Value> = Vec::new();
    for kind in store.kinds.iter().filter(|kind| !kind.group.is_empty()) {
        let version = json!({"groupVersion": kind.api_version(), "version": kind.version});
        let known = groups
            .iter_mut()
            .find(|known| known["name"] == kind.group.as_str());
        if let Some(known) = known {
            let versions = known["versions"].as_array_mut().unwrap();
            if !versions.contains(&version) {
                versions.push(version);
            }
            continue;
        }
        groups
            .push(json!({"name": kind.group, "versions": [version], "preferredVersion": version}));
    }
    match only {
        None => Answer::Value(
            200,
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}),
        ),
        Some(group) => {
            let found = groups.into_iter().find(|known| known["name"] == group);
            let Refused(code, body) = no_such_path();
            found.map_or(Answer::Value(code, body), |group| Answer::Value(200, group))
        }
    }
}

fn no_such_path() -> Refused {
    status(
        404,
        "NotFound",
        "the server could not find the requested resource",
        &json!([]),
    )
}

/// A watch: what happened since, what happens, and bookmarks, until its time is over.
fn watch_answer(world: &Arc<World>, watch: Watch) -> Response<Body> {
    let end = tokio::time::Instant::now() + Duration::from_secs(watch.seconds);
    let start = (
        world.clone(),
        watch,
        world.version.subscribe(),
        world.era.subscribe(),
    );
    let lines = stream::unfold(Some(start), move |state| async move {
        let (world, mut watch, mut version, mut era) = state?;
        loop {
            let (lines, gone) = happened(&world, &mut watch);
            if !lines.is_empty() {
                let next = (!gone).then_some((world, watch, version, era));
                return Some((lines, next));
            }
            if *era.borrow() != watch.era {
                return None;
            }
            tokio::select! {
                () = tokio::time::sleep_until(end) => return None,
                changed = version.changed() => changed.ok()?,
                changed = era.changed() => changed.ok()?,
            }
        }
    });
    let frames = lines.map(|lines| Ok::<_, Infallible>(Frame::data(Bytes::from(lines))));
    Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .body(StreamBody::new(frames).boxed_unsync())
        .unwrap()
}

/// The lines since then, and whether the watch ends with them.
fn happened(world: &World, watch: &mut Watch) -> (String, bool) {
    let store = world.store.lock().unwrap();
    if watch.from < store.compacted {
        let message = format!(
            "too old resource version: {} ({})",
            watch.from, store.compacted
        );
        let Refused(_, body) = status(410, "Expired", &message, &json!([]));
        return (
            format!("{}\n", json!({"type": "ERROR", "object": body})),
            true,
        );
    }
    let mut lines = String::new();
    for done in store.log.iter().filter(|done| done.version > watch.from) {
        if done.group == watch.kind.group
            && done.plural == watch.kind.plural
            && (watch.namespace.is_empty() || watch.namespace == done.namespace)
            && let Some(event) = event(done, watch)
        {
            lines.push_str(&event.to_string());
            lines.push('\n');
        }
    }
    if store.version > watch.from {
        watch.from = store.version;
        // So that watches which saw nothing of it know that they are up to date.
        let bookmark = json!({"type": "BOOKMARK", "object": {"kind": watch.kind.kind,
            "apiVersion": watch.kind.api_version(),
            "metadata": {"resourceVersion": store.version.to_string()}}});
        lines.push_str(&format!("{bookmark}\n"));
    }
    (lines, false)
}

fn event(done: &Done, watch: &Watch) -> Option<Value> {
    let selector = watch.selector.as_deref();
    let before = done
        .before
        .as_ref()
        .is_some_and(|before| matches(before, selector));
    let after = !done.gone && matches(&done.object, selector);
    let kind = match (before, after) {
        (false, false) => return None,
        (false, true) => "ADDED",
        (true, true) => "MODIFIED",
        (true, false) => "DELETED",
    };
    Some(json!({"type": kind, "object": reduced(done.object.clone(), watch.partial)}))
}
