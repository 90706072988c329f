//! What `plan` promises: the specification's table row by row, and properties over drawn routes.

use proptest::prelude::*;

use super::*;
use crate::{
    channel::ChannelPattern,
    event::{
        Operation,
        tests::{change, content},
    },
    facts::tests::completed,
};

const FAR: &str = "2020-01-01T00:00:00Z";

fn shipped() -> Routes {
    with(Vec::new(), Vec::new())
}

fn with(own: Vec<Route>, configurations: Vec<ChannelConfiguration>) -> Routes {
    Routes::new(&BuiltIn::load().unwrap(), &HashSet::new(), own.into_iter().map(Arc::new), configurations)
}

fn own(id: &str, type_: &str, condition: &str, wishes: Vec<Wish>) -> Route {
    let route = Route {
        id: id.to_owned(),
        description: String::new(),
        types: vec![TypePattern::parse(type_).unwrap()],
        channel_pattern: None,
        condition: RouteCondition::parse(condition).unwrap(),
        wishes,
        collapse: None,
        disabled: false,
        built_in: false,
        version: 1,
        updated_at: Timestamp::UNIX_EPOCH,
    };
    route.check().unwrap()
}

fn plan_at(routes: &Routes, event: Event, now: &str) -> Plan {
    let (event, facts) = completed(event, None);
    let now = now.parse().unwrap();
    routes.plan(Question { event: &event, facts: &facts, wedding: None, zone: &TimeZone::UTC, now })
}

fn plan(routes: &Routes, event: Event) -> Plan {
    plan_at(routes, event, FAR)
}

/// A plan on one line: `webhooks; wedding_date_change(email slack); venue`.
fn line(plan: &Plan) -> String {
    let print = |destination: &Destination| match &destination.target {
        Target::Webhooks => "webhooks".to_owned(),
        Target::Notification { workflow } => format!("{workflow}({})", destination.channels.join(" ")),
        Target::Integration { kind } => kind.clone(),
    };
    plan.destinations.iter().map(print).collect::<Vec<_>>().join("; ")
}

fn row(rest: &str) -> String {
    format!(r#"{{"id":"w1","wedding_date":"2026-06-20"{rest}}}"#)
}

fn moved(old: &str, new: &str) -> Event {
    change("wedding_details", Operation::Update, &row(old), &row(new))
}

#[test]
fn every_domain_event_goes_where_the_table_says() {
    let routes = shipped();
    for (type_, expected) in [
        ("form.response_received", "webhooks; form_response_received(email in_app); photography_crm"),
        ("journey.milestone_completed", "webhooks; journey_milestone_completed(email slack); email_marketing"),
        (
            "wedding.date_changed",
            "webhooks; wedding_date_change(email slack whatsapp in_app sms); calendar; database; email_marketing; photography_crm; venue",
        ),
        (
            "timeline.updated",
            "webhooks; timeline_changed(email slack in_app); calendar; database; photography_crm; venue",
        ),
        ("guest_count.changed", "webhooks; guest_count_changed(email in_app); caterer; database; venue"),
        (
            "client.updated",
            "webhooks; client_profile_updated(email in_app); caterer; database; email_marketing; photography_crm; wedme",
        ),
        (
            "preference.updated",
            "webhooks; client_profile_updated(email in_app); caterer; database; email_marketing; photography_crm; wedme",
        ),
        (
            "client.created",
            "webhooks; client_profile_updated(email in_app); calendar; database; email_marketing; photography_crm; wedme",
        ),
        (
            "client.deleted",
            "webhooks; client_profile_updated(email in_app); calendar; database; email_marketing; photography_crm; wedme",
        ),
        (
            "booking.updated",
            "webhooks; client_profile_updated(email in_app); calendar; database; email_marketing; photography_crm; wedme",
        ),
        ("capacity.alert", "webhooks; capacity_alert(slack in_app)"),
        ("availability.changed", "webhooks; capacity_alert(slack in_app)"),
        ("setup.requirements", "webhooks; capacity_alert(slack in_app)"),
        ("payment.received", "webhooks; payment_received(email); photography_crm"),
        ("payment.failed", "webhooks; payment_failed(email sms); photography_crm"),
        ("emergency.raised", "webhooks; emergency(email in_app slack whatsapp sms teams push); venue"),
        ("integration.failing", "webhooks; integration_failing(email slack in_app)"),
        ("integration.behind", "webhooks; vendor_behind(email in_app)"),
        ("integration.caught_up", "webhooks; vendor_caught_up(in_app)"),
        ("endpoint.disabled", "webhooks; integration_failing(email slack in_app)"),
        ("calendar.conflict", "webhooks; calendar_conflict(email slack in_app)"),
        ("contact.bounced", "webhooks; email_marketing"),
        ("campaign.reported", "webhooks"),
        ("communication.logged", ""),
        ("my.own", ""),
    ] {
        assert_eq!(line(&plan(&routes, content(type_, "{}"))), expected, "{type_}");
    }
}

#[test]
fn changes_of_rows_go_where_the_table_says() {
    let routes = shipped();
    let line = |event| line(&plan(&routes, event));
    assert_eq!(
        line(moved("", r#","wedding_date":"2026-06-21""#)),
        "webhooks; wedding_date_change(email slack whatsapp in_app sms); calendar; database; email_marketing; photography_crm; venue"
    );
    assert_eq!(
        line(moved(r#","setup_time":"1""#, r#","setup_time":"2""#)),
        "webhooks; timeline_changed(email slack in_app); calendar; database; photography_crm; venue"
    );
    assert_eq!(
        line(moved(r#","guest_count":80"#, r#","guest_count":90"#)),
        "webhooks; guest_count_changed(email in_app); caterer; database; venue"
    );
    assert_eq!(line(moved(r#","venue_notes":"a""#, r#","venue_notes":"b""#)), "record");
    assert_eq!(line(moved(r#","budget":1"#, r#","budget":2"#)), "");
    for table in ["wedding_details", "core_fields"] {
        let row = r#"{"id":"w1","couple_id":"c1","email":"a@example.com"}"#;
        assert_eq!(line(change(table, Operation::Insert, "", row)), "record", "{table}: known, and told nobody");
        assert_eq!(line(change(table, Operation::Delete, row, "")), "record", "{table}");
    }
    let progress = |old: u8, new: u8| {
        let row = |percent| format!(r#"{{"id":"j","completion_percentage":{percent}}}"#);
        change("journey_progress", Operation::Update, &row(old), &row(new))
    };
    assert_eq!(line(progress(10, 20)), "webhooks; journey_milestone_completed(email slack); email_marketing");
    assert_eq!(line(progress(10, 10)), "");
    let form = change("form_responses", Operation::Insert, "", r#"{"id":"r"}"#);
    assert_eq!(line(form), "webhooks; form_response_received(email in_app); photography_crm");
    assert_eq!(line(change("unknown", Operation::Insert, "", r#"{"id":"r"}"#)), "");
}

#[test]
fn what_two_routes_ask_for_stands_in_the_plan_once() {
    let both = moved(r#","guest_count":80"#, r#","guest_count":90,"wedding_date":"2026-06-21""#);
    let plan = plan(&shipped(), both);
    let targets: HashSet<_> = plan.destinations.iter().map(|destination| destination.target.clone()).collect();
    assert_eq!(targets.len(), plan.destinations.len());
    assert_eq!(plan.decisions.iter().filter(|decision| decision.outcome == Outcome::Matched).count(), 2);
    let webhooks = plan.destinations.iter().find(|destination| destination.target == Target::Webhooks).unwrap();
    assert_eq!(webhooks.collapse_key.split(' ').count(), 2, "one token per route: {}", webhooks.collapse_key);
}

#[test]
fn sms_comes_in_at_the_priority_that_the_row_names() {
    let later = || moved(r#","ceremony_time":"15:00""#, r#","ceremony_time":"16:00""#);
    assert!(!line(&plan(&shipped(), later())).contains("sms"));
    let plan = plan_at(&shipped(), later(), "2026-06-20T08:00:00Z");
    assert_eq!(plan.priority, Priority::Critical);
    assert!(line(&plan).contains("timeline_changed(email slack in_app sms)"));
}

#[test]
fn a_change_and_its_domain_event_share_route_and_key_at_every_destination() {
    let keys = |event| -> BTreeMap<Target, String> {
        plan(&shipped(), event).destinations.into_iter().map(|it| (it.target, it.collapse_key)).collect()
    };
    let said = keys(content("wedding.date_changed", r#"{"wedding_id":"w1","new_date":"2026-06-21"}"#));
    assert!(said.values().all(|key| !key.is_empty()));
    assert_eq!(keys(moved("", r#","wedding_date":"2026-06-21""#)), said);
    let more = keys(moved(r#","special_requests":"a""#, r#","special_requests":"b","wedding_date":"2026-06-21""#));
    let people = Target::Notification { workflow: "wedding_date_change".to_owned() };
    assert_eq!(more[&people], said[&people], "people are told the fact");
    assert_ne!(more[&Target::Webhooks], said[&Target::Webhooks], "systems take the whole row");
}

#[test]
fn channel_configuration_adds_systems_and_channels_but_begins_no_notification() {
    let routes = shipped();
    let form = change("form_responses", Operation::Insert, "", r#"{"id":"r","form_id":"f","supplier_id":"s"}"#);
    assert_eq!(
        line(&plan(&routes, form)),
        "webhooks; form_response_received(email in_app slack whatsapp); photography_crm; venue"
    );
    let noted = r#"{"id":"w1","vendor_ids":["s"],"venue_notes":"b"}"#;
    let notes = change("wedding_details", Operation::Update, r#"{"id":"w1","vendor_ids":["s"]}"#, noted);
    assert_eq!(line(&plan(&routes, notes)), "photography_crm; record; venue");
}

#[test]
fn live_only_events_reach_neither_people_nor_systems() {
    let everyone =
        || vec![Wish::webhooks(), Wish::integration("venue").unwrap(), Wish::notification("x", &["email"]).unwrap()];
    let routes = with(vec![own("mine", "*", "", everyone())], Vec::new());
    let kpi = || change("supplier_kpis", Operation::Update, "", r#"{"supplier_id":"s","revenue":1}"#);
    let list = || change("client_list_cache", Operation::Insert, "", r#"{"client_id":"c","supplier_id":"s"}"#);
    assert_eq!(line(&plan(&shipped(), kpi())), "");
    assert_eq!(line(&plan(&shipped(), list())), "webhooks");
    assert_eq!(line(&plan(&routes, kpi())), "webhooks");
}

#[test]
fn what_an_integration_reports_about_itself_is_not_sent_to_integrations() {
    let failing = content("integration.failing", r#"{"supplier_id":"s"}"#);
    assert_eq!(line(&plan(&shipped(), failing)), "webhooks; integration_failing(email slack in_app)");
}

#[test]
fn an_own_configuration_replaces_the_built_in_one_and_an_empty_one_silences_it() {
    let pattern = || ChannelPattern::parse("supplier:dashboard:*").unwrap();
    let note = || content("communication.logged", r#"{"supplier_id":"s"}"#);
    let silenced = with(Vec::new(), vec![ChannelConfiguration::new(pattern(), Vec::new()).unwrap()]);
    assert_eq!(line(&plan(&silenced, note())), "");
    let slack = Wish::notification("note", &["slack"]).unwrap();
    let replaced = with(Vec::new(), vec![ChannelConfiguration::new(pattern(), vec![slack]).unwrap()]);
    assert_eq!(line(&plan(&replaced, note())), "note(slack)");
}

#[test]
fn a_disabled_built_in_route_is_listed_and_not_followed() {
    let disabled = HashSet::from(["payment_failed".to_owned()]);
    let routes = Routes::new(&BuiltIn::load().unwrap(), &disabled, Vec::new(), Vec::new());
    assert_eq!(line(&plan(&routes, content("payment.failed", "{}"))), "");
    assert!(routes.routes().iter().any(|route| route.id == "payment_failed" && route.disabled));
}

#[test]
fn a_condition_that_fails_does_not_match_and_says_why() {
    let routes = with(vec![own("mine", "my.*", "new.a.b.c == 1", vec![Wish::webhooks()])], Vec::new());
    let plan = plan(&routes, content("my.own", "{}"));
    assert_eq!(line(&plan), "");
    let [decision] = &plan.decisions[..] else { panic!("{plan:?}") };
    assert_eq!((&*decision.route_id, decision.outcome), ("mine", Outcome::Failed));
    assert!(!decision.reason.is_empty());
}

#[test]
fn a_dry_run_says_why_a_route_did_not_match() {
    let (event, facts) = completed(moved(r#","guest_count":1"#, r#","guest_count":2"#), None);
    let question =
        Question { event: &event, facts: &facts, wedding: None, zone: &TimeZone::UTC, now: Timestamp::UNIX_EPOCH };
    let explained = shipped().explain(question);
    let unmatched = explained.decisions.iter().filter(|decision| decision.outcome == Outcome::Unmatched);
    assert_eq!(
        unmatched.map(|decision| decision.route_id.as_str()).collect::<Vec<_>>(),
        ["wedding_date_change", "timeline_changed", "row_known"]
    );
    assert_eq!(explained.destinations, shipped().plan(question).destinations);
}

#[test]
fn a_destination_lowers_its_priority_and_never_raises_it() {
    let wish = |kind: &str, at_most| Wish { at_most: Some(at_most), ..Wish::integration(kind).unwrap() };
    let routes =
        with(vec![own("mine", "my.*", "", vec![wish("a", Priority::Low), wish("b", Priority::Critical)])], Vec::new());
    let plan = plan(&routes, content("my.own", "{}"));
    let priorities: Vec<_> = plan.destinations.iter().map(|destination| destination.priority).collect();
    assert_eq!(priorities, [Priority::Low, Priority::Normal]);
}

#[test]
fn conditions_see_both_records_and_the_event() {
    let condition = "old.guest_count == none and new.guest_count == 9 and event.table == 'wedding_details' and event.wedding_id == 'w1' and event.operation == 'insert'";
    let routes = with(vec![own("mine", "wedding_details.*", condition, vec![Wish::webhooks()])], Vec::new());
    let event = change("wedding_details", Operation::Insert, "", r#"{"id":"w1","guest_count":9}"#);
    assert_eq!(line(&plan(&routes, event)), "webhooks; record");
}

/// The cost of an event: how many routes are looked at, whatever their number.
#[test]
fn a_hundred_thousand_routes_elsewhere_are_not_looked_at() {
    let mut routes = shipped();
    for n in 0..100_000 {
        let mut route = own(&n.to_string(), "wedding_details.update", "", vec![Wish::webhooks()]);
        match n % 2 {
            0 => route.channel_pattern = Some(ChannelPattern::parse(&format!("wedding:w{n}")).unwrap()),
            _ => route.types = vec![TypePattern::parse(&format!("t{n}.*")).unwrap()],
        }
        routes.add(Arc::new(route));
    }
    let event = change("wedding_details", Operation::Update, r#"{"id":"w42"}"#, r#"{"id":"w42"}"#);
    let (event, facts) = completed(event, None);
    let looked_at: Vec<&str> = routes.candidates(&event, &facts).map(|route| route.id.as_str()).collect();
    assert_eq!(looked_at, ["wedding_date_change", "timeline_changed", "guest_count_changed", "row_known", "42"]);
}

fn drawn_route() -> impl Strategy<Value = (String, Option<String>, Vec<u8>)> {
    let type_ = prop::sample::select(vec!["a.x", "a.y", "b.x", "a.*", "b.*", "*"]).prop_map(str::to_owned);
    let channel = prop::option::of(
        prop::sample::select(vec!["wedding:*", "wedding:1", "couple:**", "supplier:*"]).prop_map(str::to_owned),
    );
    (type_, channel, prop::collection::vec(0u8..6, 1..4))
}

fn wish(number: u8) -> Wish {
    match number {
        0 => Wish::webhooks(),
        1 | 2 => Wish::integration(&format!("kind{number}")).unwrap(),
        3 => Wish { at_most: Some(Priority::Low), ..Wish::integration("kind1").unwrap() },
        _ => Wish::notification("flow", &[["email", "slack"][usize::from(number) % 2]]).unwrap(),
    }
}

proptest! {
    #[test]
    fn a_plan_is_the_union_of_its_routes_each_destination_once(
        drawn in prop::collection::vec(drawn_route(), 0..12),
        type_ in prop::sample::select(vec!["a.x", "a.y", "b.x", "c.z"]),
        id in 1u8..3,
    ) {
        let route = |(n, (type_, channel, wishes)): (usize, &(String, Option<String>, Vec<u8>))| Route {
            channel_pattern: channel.as_deref().map(|text| ChannelPattern::parse(text).unwrap()),
            ..own(&n.to_string(), type_, "", wishes.iter().copied().map(wish).collect())
        };
        let own: Vec<Route> = drawn.iter().enumerate().map(route).collect();
        let event = content(type_, &format!(r#"{{"wedding_id":"{id}"}}"#));
        let (completed, _) = completed(event.clone(), None);
        let fits = |route: &&Route| route.types.iter().any(|pattern| pattern.matches(&completed.type_))
            && route.channel_pattern.as_ref().is_none_or(|pattern| completed.channels.iter().any(|channel| pattern.matches(channel)));
        let expected: BTreeSet<Target> = own.iter().filter(fits).flat_map(|route| &route.wishes).map(|wish| wish.target.clone()).collect();
        let routes = with(own, Vec::new());
        let plan = plan(&routes, event.clone());
        prop_assert_eq!(plan.destinations.iter().map(|it| it.target.clone()).collect::<Vec<_>>(), expected.into_iter().collect::<Vec<_>>());
        prop_assert!(plan.destinations.iter().all(|it| it.priority <= plan.priority));
        prop_assert_eq!(super::tests::plan(&routes, event), plan);
    }
}
