//! Bodies as vendors want them and send them: forms, flat and with keys in brackets, to JSON and back. Pure and bounded.

use serde_json::{Map, Value as Json};
use url::form_urlencoded;

use super::text::printed;

/// Members of a form, and steps of one key.
const MEMBERS: usize = 2_000;
const DEPTH: usize = 8;

/// Takes out the members of objects that are null. Items of lists keep their places.
pub(super) fn drop_nulls(json: &mut Json) {
    match json {
        Json::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Json::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// `a=b&c=d`; a list gives its key once for each item.
pub(super) fn form(json: &Json) -> Result<String, String> {
    let members = json.as_object().ok_or("a form is made of an object")?;
    let mut form = form_urlencoded::Serializer::new(String::new());
    for (name, value) in members {
        let items = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        for item in items {
            form.append_pair(name, &text(name, item)?);
        }
    }
    Ok(form.finish())
}

/// `a[b][0]=c`.
pub(super) fn nested_form(json: &Json) -> Result<String, String> {
    let members = json.as_object().ok_or("a form is made of an object")?;
    let mut form = form_urlencoded::Serializer::new(String::new());
    members.iter().try_for_each(|(name, value)| nest(&mut form, name.clone(), value))?;
    Ok(form.finish())
}

fn nest(form: &mut form_urlencoded::Serializer<'_, String>, key: String, value: &Json) -> Result<(), String> {
    match value {
        Json::Object(members) => {
            members.iter().try_for_each(|(name, value)| nest(form, format!("{key}[{name}]"), value))
        }
        Json::Array(items) => {
            items.iter().enumerate().try_for_each(|(index, item)| nest(form, format!("{key}[{index}]"), item))
        }
        value => {
            let value = text(&key, value)?;
            form.append_pair(&key, &value);
            Ok(())
        }
    }
}

fn text(name: &str, value: &Json) -> Result<String, String> {
    printed(value).map(Option::unwrap_or_default).map_err(|_| format!("{name} has parts: a flat form can't hold it"))
}

/// A flat form as an object of texts; a key that stands twice has its last value.
pub(super) fn read_form(body: &[u8]) -> Result<Json, String> {
    let mut members = Map::new();
    for (index, (name, value)) in form_urlencoded::parse(body).enumerate() {
        if index == MEMBERS {
            return Err(format!("has more than {MEMBERS} members"));
        }
        members.insert(name.into_owned(), Json::String(value.into_owned()));
    }
    Ok(Json::Object(members))
}

/// A form with keys in brackets as a tree of objects; `a[]` counts its items, so that their order is kept.
pub(super) fn read_nested_form(body: &[u8]) -> Result<Json, String> {
    let mut root = Map::new();
    for (index, (key, value)) in form_urlencoded::parse(body).enumerate() {
        if index == MEMBERS {
            return Err(format!("has more than {MEMBERS} members"));
        }
        insert(&mut root, &steps(&key)?, value.into_owned())?;
    }
    Ok(Json::Object(root))
}

/// `data[merges][FNAME]` as its three names.
fn steps(key: &str) -> Result<Vec<&str>, String> {
    let Some((first, rest)) = key.split_once('[') else { return Ok(vec![key]) };
    let rest = rest.strip_suffix(']').ok_or("has a key whose bracket is not closed")?;
    let steps: Vec<&str> = std::iter::once(first).chain(rest.split("][")).collect();
    if steps.len() > DEPTH { Err(format!("has a key of more than {DEPTH} steps")) } else { Ok(steps) }
}

fn insert(members: &mut Map<String, Json>, steps: &[&str], value: String) -> Result<(), String> {
    let (first, rest) = steps.split_first().ok_or("has an empty key")?;
    let name = if first.is_empty() { members.len().to_string() } else { (*first).to_owned() };
    if rest.is_empty() {
        members.insert(name, Json::String(value));
        return Ok(());
    }
    match members.entry(name).or_insert_with(|| Json::Object(Map::new())) {
        Json::Object(inner) => insert(inner, rest, value),
        _ => Err("has a key that is both a text and more".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn brackets_become_members_and_back() {
        let json = json!({"type": "profile", "data": {"merges": {"FNAME": "Ada & co", "AGE": "7"}, "id": "x"}});
        let text = nested_form(&json).expect("texts alone");
        assert!(text.contains("data%5Bmerges%5D%5BFNAME%5D=Ada+%26+co"), "{text}");
        assert_eq!(read_nested_form(text.as_bytes()), Ok(json));
        assert_eq!(read_nested_form(b"a[]=x&a[]=y"), Ok(json!({"a": {"0": "x", "1": "y"}})));
    }

    #[test]
    fn a_flat_form_repeats_lists_and_refuses_parts() {
        assert_eq!(form(&json!({"a": [1, "b"], "c": true, "d": null})), Ok("a=1&a=b&c=true&d=".to_owned()));
        assert!(form(&json!({"a": {"b": 1}})).is_err());
        assert!(form(&json!([1])).is_err());
    }

    #[test]
    fn nulls_go_from_objects_and_stay_in_lists() {
        let mut json = json!({"a": null, "b": [null, {"c": null, "d": 1}]});
        drop_nulls(&mut json);
        assert_eq!(json, json!({"b": [null, {"d": 1}]}));
    }

    #[test]
    fn deep_and_broken_keys_are_refused() {
        for body in ["a[b=1", "a=1&a[b]=2", "a[b][c][d][e][f][g][h][i]=1", "a[b]c=1"] {
            assert!(read_nested_form(body.as_bytes()).is_err(), "{body}");
        }
        assert!(read_form("a=1&".repeat(MEMBERS + 1).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn no_form_panics(body in any::<Vec<u8>>()) {
            drop((read_form(&body), read_nested_form(&body)));
        }
    }
}
