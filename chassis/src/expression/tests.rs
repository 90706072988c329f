use proptest::prelude::*;
use serde_json::json;

use super::*;

fn scope() -> Value {
    let new = r#"{"id":7,"wedding_date":"2026-06-20","guests":120,"budget":10.5,"venue":{"name":"Barn","city":null},
        "tags":["outdoor","summer"],"confirmed":true,"notes":null,"title":"Ada & Grace","hours":"40",
        "vendors":[{"name":"Bloom","fee":300},{"name":"Brass","fee":450}]}"#;
    let old = r#"{"id":7,"wedding_date":"2026-06-13","guests":120,"venue":{"name":"Barn","city":null}}"#;
    let of = |json: &str| Value::from_json(json.as_bytes()).expect("JSON");
    Value::scope([("new", of(new)), ("old", of(old)), ("event", of(r#"{"type":"weddings.update","cause":null}"#))])
}

fn eval(source: &str) -> Result<serde_json::Value, ExpressionError> {
    Expression::compile(source, OF_CHANGE)?.eval(&scope())
}

fn holds(source: &str) -> Result<bool, ExpressionError> {
    Condition::compile(source)?.eval(&scope())
}

fn refused(source: &str) -> String {
    Condition::compile(source).expect_err(source).to_string()
}

fn impossible(source: &str) -> String {
    Condition::compile(source).expect(source).eval(&scope()).expect_err(source).to_string()
}

#[test]
fn conditions_hold_or_not() {
    for source in [
        "new.wedding_date != old.wedding_date",
        "new.guests == old.guests",
        "new.guests > 100 and new.confirmed",
        "not new.notes",
        "not not new.confirmed",
        "new.venue == old.venue",
        "new != old",
        "new.venue.name == 'Barn'",
        "'outdoor' in new.tags",
        "'winter' not in new.tags",
        "'Ada' in new.title",
        "'venue' in new",
        "'hall' not in new",
        "new.tags[0] == 'outdoor'",
        "new.tags[-1] == 'summer'",
        "new['guests'] >= 120",
        "new.guests + 1 > old.guests",
        "new.guests - 20 == 100",
        "new.guests / 2 == 60.0",
        "new.guests // 7 == 17",
        "new.guests % 7 == 1",
        "-1|abs == 1",
        "-new.guests < 0",
        "mul(new.guests, 2) == 240",
        "add(1, 2.5) == 3.5",
        "concat(new.id, '-', true, none) == '7-true'",
        "new.tags|length == 2",
        "new.title|lower == 'ada & grace'",
        "new.title|upper|lower|length == 11",
        "new.tags|join(', ') == 'outdoor, summer'",
        "new.vendors|pluck('fee')|sum == 750",
        "'a,b'|split(',')|last == 'b'",
        "new.tags|first == 'outdoor'",
        "[]|first is none",
        "new.notes|default('x') == 'x'",
        "new.missing|d(1) == 1",
        "'40'|int == 40",
        "'2.5'|float == 2.5",
        "2.567|round(2) == 2.57",
        "number(new.hours) > 39",
        "3|string == '3'",
        "'abc'|truncate(2) == 'ab'",
        "'éa'|truncate(1) == 'é'",
        "' a '|trim == 'a'",
        "'aDA'|capitalize == 'Ada'",
        "date(new.wedding_date) > date(old.wedding_date)",
        "days_between(old.wedding_date, new.wedding_date) == 7",
        "add_days(new.wedding_date, -7) == old.wedding_date",
        "date('2026-06-20T23:00:00+02:00') == new.wedding_date",
        "date('2026-06-20T23:00:00Z') == new.wedding_date",
        "timestamp('2026-06-20T12:00:00+02:00') < timestamp('2026-06-20T11:00:00Z')",
        "new.wedding_date|format_date('%-d %B %Y') == '20 June 2026'",
        "new.venue|tojson == '{\"city\":null,\"name\":\"Barn\"}'",
        "new.title is string and new.guests is number and new.tags is sequence and new.venue is mapping",
        "new.confirmed is true and new.notes is none and new.guests is defined and new.hall is not defined",
        "new.title is startingwith('Ada') and new.title is endingwith('Grace')",
        "1 if new.confirmed else 0",
        "(1 if old.confirmed) is none",
        "new.guests in [120, 121]",
        "{'a': 1}.a == 1",
        "event.type == 'weddings.update'",
        "'\\u00e9\\n' == \"é\\n\"",
        "1 == 1.0",
        "true and (false or true)",
        "new.guests > 1\n  and\n new.guests < 121",
    ] {
        assert_eq!(holds(source), Ok(true), "{source}");
    }
    for source in
        ["new.guests > 120", "new.notes", "new.hall", "old.confirmed", "0", "''", "[]", "{}", "none", "not true"]
    {
        assert_eq!(holds(source), Ok(false), "{source}");
    }
}

#[test]
fn on_insert_the_old_record_is_an_empty_map() {
    let scope = Value::scope([("new", Value::from_json(br#"{"a":1}"#).expect("JSON")), ("old", Value::empty())]);
    let condition = Condition::compile("old.a is none and new.a == 1 and old == {}").expect("compiles");
    assert_eq!(condition.eval(&scope), Ok(true));
}

#[test]
fn a_missing_last_step_is_none_and_deeper_is_an_error() {
    assert_eq!(holds("new.hall == none and new.venue.hall == none and new.venue.city == none"), Ok(true));
    for source in [
        "new.hall.name == 'x'",
        "new.hall.name",
        "not new.venue.city.name",
        "new.notes.a.b",
        "new.tags[9] == 1",
        "new.guests.x == 1",
        "'x' in new.hall.name",
        "new.hall.name < 1",
    ] {
        assert!(impossible(source).contains("undefined"), "{source}: {}", impossible(source));
    }
}

#[test]
fn ordering_two_kinds_is_an_error() {
    for source in [
        "new.guests > '100'",
        "new.hall < 1",
        "new.confirmed > 0",
        "new.tags < new.tags",
        "new.title >= 1",
        "number(new.guests) < date('2026-01-01')",
    ] {
        assert!(impossible(source).contains("can't be ordered"), "{source}: {}", impossible(source));
    }
    for source in [
        "number('x') > 1",
        "number(none) > 1",
        "date('20.6.2026') < date('2026-01-01')",
        "date(20260620) == 1",
        "timestamp('2026-06-20') == 1",
        "add_days('9999-12-31', 1) == 1",
        "add_days('2026-01-01', 9223372036854775807) == 1",
    ] {
        impossible(source);
    }
}

#[test]
fn only_numbers_are_added() {
    for source in [
        "new.title + new.title",
        "new.tags + new.tags",
        "'a' + 'b'",
        "1 + 'b'",
        "new.hall + 1",
        "mul('x', 1000)",
        "mul(1000, 'x')",
        "mul([1], 5)",
        "'a' - 'b'",
        "true + 1",
    ] {
        impossible(source);
    }
    for source in [
        "170141183460469231731687303715884105727 + 1",
        "mul(9223372036854775807, 9223372036854775807, 9223372036854775807)",
        "1 / 0",
        "1 % 0",
        "1 // 0",
        "9e300|int",
    ] {
        impossible(source);
    }
}

#[test]
fn what_the_language_does_not_have_is_refused_when_compiled() {
    for source in [
        "('x'*1000)*100000",
        "new.guests * 2",
        "2 ** 64",
        "'a' ~ 'b'",
        "'%500000000s'|format('a')",
        "'a'|replace('a', 'b')",
        "'a'|indent(100)",
        "range(10)",
        "namespace()",
        "debug()",
        "dict()",
        "lipsum()",
        "cycler()",
        "joiner()",
        "_lt(1, 2)",
        "_in",
        "new.title.upper()",
        "new.guests()",
        "new.tags[0:1]",
        "new.tags[::-1]",
        "x",
        "self",
        "loop",
        "super()",
        "caller()",
        "new.tags|map('upper')",
        "new.tags|list",
        "new.tags|sort",
        "new is callable",
        "new is sameas(old)",
        "new|safe",
        "1 < 2 < 3",
        "new == old == old",
        "(1, 2)",
        "()",
        "{new: 1}",
        "[1",
        "1]",
        "new.",
        "new..a",
        "'a",
        "\"a",
        "1 2",
        "new old",
        "a = 1",
        "new.a = 1",
        "concat(x=1)",
        "if",
        "not",
        "and 1",
        "1 and",
        "1 if",
        "1 if 2 else",
        "x if",
        "",
        "{{ new }}",
        "{% set x = 1 %}",
        "new;old",
        "new & old",
        "new && old",
        "!new",
        "`new`",
        "$new",
        "0x10",
        "1_000",
        "1e",
        "1e400",
        "12abc",
        "'\\x41'",
        "'\\ud800'",
        "new.été",
        "--1",
        "not in",
        "new in",
        "add",
        "new.a b",
        "# x",
        "new|",
        "new is",
    ] {
        refused(source);
    }
}

#[test]
fn refusals_say_what_to_write_instead_and_where() {
    assert_eq!(refused("new.a == 1\nand new.b * 2 == 4"), "line 2: `*` is not part of the language: use mul(a, b)");
    assert!(refused("new.a ~ new.b").contains("use concat(a, b)"));
    assert!(refused("nwe.a").contains("use one of event, new, old"));
    assert!(refused("new.a|uper").contains("upper"));
    let late = impossible("new.guests > 1\n\nand new.hall.name == 1");
    assert!(late.starts_with("line 3: "), "{late}");
}

#[test]
fn errors_hold_no_data() {
    for source in [
        "new.title > 1",
        "number(new.title)",
        "date(new.title)",
        "new.title - 1",
        "new.title + 1",
        "new.title|round",
        "new.title|int",
        "new.title|items",
        "new.title.x.y",
        "new.title|format_date('%Y')",
        "new.title[new.title][0]",
        "-new.title",
        "new.title|abs",
        "new.guests|split(new.title)",
        "new.title|truncate(new.title)",
    ] {
        let error = impossible(source);
        assert!(!error.contains("Ada") && !error.contains("Grace"), "{source}: {error}");
    }
}

#[test]
fn long_and_deep_sources_are_refused_and_never_overflow_the_stack() {
    assert!(refused(&" ".repeat(SOURCE_BYTES + 1)).contains("16 KiB"));
    for (open, close) in [
        ("(", ")"),
        ("[", "]"),
        ("{'a':", "}"),
        ("-(", ")"),
        ("not (", ")"),
        ("new[", "]"),
        ("add(", ")"),
        ("1 if 1 else ", ""),
        ("new|default(", ")"),
    ] {
        for depth in [100, 1000, 5000] {
            let source = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            if source.len() <= SOURCE_BYTES {
                assert!(refused(&source).contains("too deep"), "{open} {depth}");
            }
        }
    }
    refused(&"(".repeat(SOURCE_BYTES));
    for chain in [" + 1", " - 1", "|abs", " is none", "[0]", " / 1"] {
        assert!(refused(&format!("new{}", chain.repeat(2000))).contains("too long"), "{chain}");
    }
    assert_eq!(holds(&format!("new{}", " and new".repeat(1500))), Ok(true));
    assert_eq!(holds(&format!("old.a{}", " or old.a".repeat(1500))), Ok(false));
    assert_eq!(holds(&format!("{}new", "not ".repeat(4000))), Ok(true));
    for (open, close) in
        [("(", ")"), ("[", "]"), ("{'a':", "}"), ("concat(", ")"), ("(1 if 0 else ", ")"), ("new[", "]")]
    {
        let allowed = (1..60).map(|depth| format!("{}1{}", open.repeat(depth), close.repeat(depth)));
        let errors: Vec<_> = allowed.filter_map(|source| Condition::compile(&source).err()).collect();
        assert!(
            errors.len() > 20 && errors.iter().all(|error| error.reason.contains("too deep")),
            "{open}: {errors:?}"
        );
    }
    assert_eq!(holds(&format!("{}0{}", "not (0 == (".repeat(5), "))".repeat(5))), Ok(false));
    assert!(holds(&format!("new{}", ".a".repeat(5000))).is_err());
}

#[test]
fn a_short_source_cant_multiply_a_long_record() {
    let long = format!("{{\"text\":\"{}\",\"list\":[{}1]}}", "x".repeat(500_000), "1,".repeat(100_000));
    let scope = Value::scope([
        ("new", Value::from_json(long.as_bytes()).expect("JSON")),
        ("old", Value::from_json(long.as_bytes()).expect("JSON")),
    ]);
    let all = |item: &str| vec![item; 600].join(", ");
    for source in [
        format!("[{}]", all("new.text")),
        format!("concat({})", all("new.text")),
        format!("[{}]|join", all("new.text")),
        format!("[{}]|tojson", all("new")),
        format!("[{}]", all("new.list|join(new.text)")),
        format!("[{}]", all("new.text|upper")),
        format!("[{}]", all("new == old")),
        format!("[{}]", all("new.list == old.list")),
        format!("[{}]", all("2 in new.list")),
        format!("[{}]", all("'y' in new.text")),
        "new.text|split('x')".to_owned(),
        format!("'2026-01-01'|format_date('{}')", "%Y".repeat(8000)),
    ] {
        let expression = Expression::compile(&source, OF_CHANGE).expect("compiles");
        let error = expression.eval(&scope).err().map(|error| error.reason).unwrap_or_default();
        assert!(error.contains("too much work") || error.contains("too long"), "{source:.40}: {error}");
    }
    let condition = Condition::compile("new == old").expect("compiles");
    assert_eq!(condition.eval(&scope), Ok(true), "the next evaluation has its own allowance");
}

#[test]
fn results_keep_their_types() {
    assert_eq!(eval("new.guests"), Ok(json!(120)));
    assert_eq!(eval("new.budget"), Ok(json!(10.5)));
    assert_eq!(eval("new.confirmed"), Ok(json!(true)));
    assert_eq!(eval("new.notes"), Ok(json!(null)));
    assert_eq!(eval("new.hall"), Ok(json!(null)));
    assert_eq!(eval("new.venue"), Ok(json!({"name": "Barn", "city": null})));
    assert_eq!(eval("new.vendors|pluck('name')"), Ok(json!(["Bloom", "Brass"])));
    assert_eq!(eval("{'a': [1, {'b': new.tags}]}"), Ok(json!({"a": [1, {"b": ["outdoor", "summer"]}]})));
    assert_eq!(eval("new.venue|items"), Ok(json!([["city", null], ["name", "Barn"]])));
    assert_eq!(eval("9223372036854775807 + 1"), Ok(json!(9_223_372_036_854_775_808_u64)));
    assert!(eval("18446744073709551615 + 1").is_err());
}

#[test]
fn other_callers_name_their_own_variables() {
    let scope = Value::scope([
        ("body", Value::from_json(br#"{"type":"x"}"#).expect("JSON")),
        ("headers", Value::map([("x-topic", Value::text("orders"))])),
    ]);
    let expression =
        Expression::compile("concat(headers['x-topic'], '.', body.type)", &["body", "headers"]).expect("compiles");
    assert_eq!(expression.eval(&scope), Ok(json!("orders.x")));
    assert!(Expression::compile("new.a", &["body", "headers"]).is_err());
}

#[test]
fn a_mapping_gives_its_structure_with_typed_leaves() {
    let source = r#"{"title":"new.title","guests":"new.guests + 1","fixed":3,"kind":"'wedding'","on":true,
        "nested":[{"date":"date(new.wedding_date)"},null,"new.tags"]}"#;
    let mapping = Mapping::compile(source, OF_CHANGE).expect("compiles");
    let expected = json!({"title":"Ada & Grace","guests":121,"fixed":3,"kind":"wedding","on":true,
        "nested":[{"date":"2026-06-20"},null,["outdoor","summer"]]});
    assert_eq!(mapping.apply(&scope()), Ok(expected));
}

#[test]
fn a_mappings_errors_name_the_leaf() {
    let error = Mapping::compile(r#"{"a":{"b":["new.x * 2"]}}"#, OF_CHANGE).expect_err("refused").to_string();
    assert!(error.starts_with("$.a.b[0]: line 1: "), "{error}");
    let mapping = Mapping::compile(r#"{"a":["1","new.hall.name"]}"#, OF_CHANGE).expect("compiles");
    let error = mapping.apply(&scope()).expect_err("too deep").to_string();
    assert_eq!(error, "$.a[1]: line 1: uses something that is undefined");
    assert!(Mapping::compile("{", OF_CHANGE).is_err());
    assert!(Mapping::compile(&format!("[{}]", "[".repeat(10_000)), OF_CHANGE).is_err());
    let wide = format!("[{}\"new\"]", "\"new\",".repeat(2000));
    let long = format!("{{\"text\":\"{}\"}}", "x".repeat(100_000));
    let scope = Value::scope([("new", Value::from_json(long.as_bytes()).expect("JSON"))]);
    let error = Mapping::compile(&wide, OF_CHANGE).expect("compiles").apply(&scope).expect_err("200 MB");
    assert!(error.reason.contains("too much work"), "{error}");
}

#[test]
fn hostile_json_is_refused_as_data() {
    assert!(Value::from_json("[".repeat(100_000).as_bytes()).is_err());
    assert!(Value::from_json(b"{} {}").is_err());
    assert!(Value::from_json(br#"{"a\u0000":1}"#).is_ok());
}

fn render(name: &str, source: &str) -> Result<String, ExpressionError> {
    let data = json!({"name": "Ada <b> & \"Grace\"", "list": [1, 2, 3], "vendors": [{"name": "Bloom"}, {"name": "Brass"}],
        "none": null, "yes": true, "date": "2026-06-20", "map": {"b": 1, "a": 2}, "long": "x".repeat(100_000)});
    Template::compile(name, source)?.render(&data)
}

#[test]
fn templates_render_by_their_names_ending() {
    assert_eq!(render("a.txt", "Dear {{ name }}"), Ok("Dear Ada <b> & \"Grace\"".to_owned()));
    assert_eq!(render("a.html", "<p>{{ name }}</p>"), Ok("<p>Ada &lt;b&gt; &amp; &quot;Grace&quot;</p>".to_owned()));
    assert_eq!(render("a.html.j2", "{{ name|lower }}"), Ok("ada &lt;b&gt; &amp; &quot;grace&quot;".to_owned()));
    assert_eq!(
        render("a.json", r#"{"text": {{ name }}, "list": {{ list }}}"#),
        Ok(r#"{"text": "Ada <b> & \"Grace\"", "list": [1,2,3]}"#.to_owned())
    );
}

#[test]
fn templates_have_conditions_loops_and_comments() {
    for (source, expected) in [
        ("{% if list|length > 2 %}many{% elif yes %}some{% else %}none{% endif %}", "many"),
        ("{% for vendor in vendors %}{{ loop.index }}. {{ vendor.name }};{% endfor %}", "1. Bloom;2. Brass;"),
        ("{% for x in [] %}x{% else %}empty{% endfor %}", "empty"),
        ("{% for k, v in map|items %}{{ k }}={{ v }} {% endfor %}", "a=2 b=1 "),
        ("a {#- comment {{ x }} {% set %} -#} b", "ab"),
        ("{{- ' x ' -}}  y", " x y"),
        ("{{ '}}' }}{{ '{{' }}{{ {'a': {'b': '%}'}}.a.b }}", "}}{{%}"),
        ("{{ yes }} {{ none }} {{ 1.5 }}", "true  1.5"),
        ("{{ date|format_date('%A, %-d %B') }}", "Saturday, 20 June"),
        ("{{ map|tojson }}", r#"{"a":2,"b":1}"#),
        ("} { %} # }} {", "} { %} # }} {"),
        ("{{ missing|default('x') }}{% if missing is defined %}y{% endif %}", "x"),
        ("{%if(yes)%}a{%endif%}", "a"),
    ] {
        assert_eq!(render("a.txt", source), Ok(expected.to_owned()), "{source}");
    }
}

#[test]
fn what_is_undefined_is_an_error_in_a_template_with_its_line() {
    for source in [
        "{{ missing }}",
        "{{ map.missing }}",
        "{% if missing %}{% endif %}",
        "{% for x in missing %}{% endfor %}",
        "{{ missing > 1 }}",
        "{{ vendors[0].nmae }}",
    ] {
        let error = render("a.txt", &format!("one\ntwo\n{source}")).expect_err(source);
        assert_eq!(error.to_string(), "a.txt: line 3: uses something that is undefined", "{source}");
    }
    let error = render("a.txt", "one\n{#\n#}{{\n\n missing }}").expect_err("undefined");
    assert_eq!(error.line, 5);
}

#[test]
fn tags_that_could_grow_define_or_reach_elsewhere_are_refused() {
    for source in [
        "{% set x = 1 %}",
        "{% set x %}{{ name }}{% endset %}",
        "{% with x = 1 %}{% endwith %}",
        "{% macro m() %}{% endmacro %}",
        "{% include 'x' %}",
        "{% extends 'x' %}",
        "{% import 'x' as y %}",
        "{% block x %}{% endblock %}",
        "{% raw %}{% endraw %}",
        "{% filter upper %}{% endfilter %}",
        "{% autoescape false %}{% endautoescape %}",
        "{% do x %}",
        "{% call m() %}{% endcall %}",
        "{{ name * 1000 }}",
        "{{ name ~ name }}",
        "{{ range(1000000) }}",
        "{{ loop(list) }}",
        "{{ name|safe }}",
        "{{ name",
        "{% if yes",
        "{# open",
        "{% if yes %}",
        "{% endif %}",
        "{% for x in list if x %}{% endfor %}",
        "{% for x in list recursive %}{% endfor %}",
        "{% for x, y, z in list %}{% endfor %}",
        "{% for _in in list %}{% endfor %}",
        "{% for loop in list %}{% endfor %}",
        "{% for %}",
        "{% %}",
        "{{ }}",
        "{% else if yes %}",
        "{% endif x %}",
        "{%+ if yes %}{% endif %}",
        "{{ name }",
        "{% if yes }}",
    ] {
        assert!(Template::compile("a.txt", source).is_err(), "{source}");
    }
    assert!(Template::compile("a.txt", &"x".repeat(SOURCE_BYTES + 1)).is_err());
}

#[test]
fn loops_and_long_texts_end() {
    let nested = |depth: usize, inner: &str| {
        let numbers = format!("[{}1]", "1,".repeat(40));
        format!("{}{inner}{}", format!("{{% for x in {numbers} %}}").repeat(depth), "{% endfor %}".repeat(depth))
    };
    let error = render("a.txt", &nested(8, "")).expect_err("41^8 turns");
    assert!(error.reason.contains("too many steps"), "{error}");
    for name in ["a.txt", "a.html", "a.json"] {
        let error = render(name, &nested(2, "{{ long }}")).expect_err("168 MB");
        assert!(error.reason.contains("too long a"), "{error}");
    }
    let error = render("a.txt", &nested(3, "{% if long|upper|lower == long %}{% endif %}")).expect_err("too much");
    assert!(error.reason.contains("too much work"), "{error}");
}

#[test]
fn deep_and_branching_templates_are_refused_and_never_overflow_the_stack() {
    let ifs = |depth: usize| format!("{}x{}", "{% if yes %}".repeat(depth), "{% endif %}".repeat(depth));
    let branches = |count: usize| format!("{{% if none %}}{}{{% else %}}x{{% endif %}}", "{%elif none%}".repeat(count));
    let loops = |depth: usize| format!("{}x{}", "{% for y in [1] %}".repeat(depth), "{% endfor %}".repeat(depth));
    for source in [ifs(32), branches(30), loops(32), ifs(1).repeat(500)] {
        assert!(render("a.txt", &source).is_ok_and(|text| text.starts_with('x')), "{source:.40}");
    }
    for source in [
        ifs(33),
        ifs(600),
        branches(31),
        branches(1200),
        loops(33),
        "{%if yes%}".repeat(1600),
        "{%-\nif yes%}".repeat(1200),
    ] {
        let error = render("a.txt", &source).expect_err("deep");
        assert!(error.reason.contains("nests too deep"), "{error}");
    }
    for source in ["{% else %}", "{% endif %}{% endif %}", "{% elif yes %}".repeat(900).as_str()] {
        assert!(Template::compile("a.txt", source).is_err(), "{source:.40}");
    }
}

#[test]
fn lists_and_maps_are_not_printed_by_accident() {
    let error = render("a.txt", "{{ map }}").expect_err("a map");
    assert!(error.reason.contains("can't be printed"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever is written: it is refused, it fails, or it gives a result.
    #[test]
    fn no_source_breaks_the_engine(source in "[ -~\n]{0,60}") {
        let _ = Condition::compile(&source).map(|condition| condition.eval(&scope()));
        let _ = render("a.html", &source);
    }

    /// The same, but from pieces that make sense, so that most get further.
    #[test]
    fn no_arrangement_of_pieces_breaks_the_engine(pieces in proptest::collection::vec(prop::sample::select(vec![
        "new", "old", ".a", ".tags", ".title", "[0]", "(", ")", "[", "]", "{", "}", "'x'", "\"}}\"", "1", "2.5", "-", "+", "/", "//", "%", "==",
        "<", " in ", " not ", " and ", " or ", " if ", " else ", " is none", "|length", "|first", "|join(',')", "|items", ",", ":", "add(", "mul(",
        "date(", "{{", "}}", "{%", "%}", "{#", "#}", "for x in ", "endfor", "if ", "endif", "\n", "'", "\\",
    ]), 0..14)) {
        let source = pieces.concat();
        let _ = Condition::compile(&source).map(|condition| condition.eval(&scope()));
        let _ = Template::compile("a.html", &source).map(|template| template.render(&json!({"new": {"tags": [1]}, "old": {}})));
    }

    /// A text in a source means itself, whatever it holds, alone and in a template.
    #[test]
    fn any_text_means_itself(text in any::<String>()) {
        let source = serde_json::Value::from(text.clone()).to_string();
        prop_assert_eq!(eval(&source), Ok(json!(text)));
        prop_assert_eq!(render("a.txt", &format!("{{{{ {source} }}}}")), Ok(text));
    }

    /// Sums and comparisons agree with Rust's.
    #[test]
    fn arithmetic_agrees_with_rust(a in any::<i32>(), b in any::<i32>()) {
        let sum = eval(&format!("{a} + ({b}) - (mul({a}, 2))"));
        let expected = i64::from(a) + i64::from(b) - 2 * i64::from(a);
        prop_assert_eq!(sum, Ok(json!(expected)));
        prop_assert_eq!(holds(&format!("{a} < ({b})")), Ok(a < b));
    }
}

#[test]
fn what_two_systems_write_differently_is_converted_both_ways() {
    for (source, expected) in [
        ("'ABC'|lower|md5", json!("900150983cd24fb0d6963f7d28e17f72")),
        ("'06/20/2026'|parse_date('%m/%d/%Y')", json!("2026-06-20")),
        ("'2026-06-20'|format_date('%m/%d/%Y')", json!("06/20/2026")),
        ("'3:05 PM'|parse_time('%I:%M %p')", json!("15:05")),
        ("'15:05'|format_time('%-I:%M %p')", json!("3:05 PM")),
        ("' Ada  King of Lovelace '|first_word", json!("Ada")),
        ("' Ada  King of Lovelace '|other_words", json!("King of Lovelace")),
        ("'Ada'|other_words", json!("")),
        ("'lead'|lookup({'lead': 'new'})", json!("new")),
        ("7|lookup({'7': 'seven'})", json!("seven")),
        ("'won'|lookup({'lead': 'new'}, 'other')", json!("other")),
        ("'won'|lookup({'lead': 'new'})", json!(null)),
        ("'  '|nonempty", json!(null)),
        ("new.tags|nonempty|length", json!(2)),
    ] {
        assert_eq!(eval(source).expect(source), expected, "{source}");
    }
    for none in ["parse_date('%Y')", "parse_time('%H')", "format_time('%H')", "first_word", "other_words", "lookup({})"]
    {
        assert_eq!(eval(&format!("new.notes|{none}")).expect(none), json!(null), "{none}");
    }
}

#[test]
fn what_does_not_follow_its_pattern_is_an_error_and_long_ones_are_refused() {
    for source in [
        "'20/06/2026'|parse_date('%m/%d/%Y')",
        "'25:00'|format_time('%H')",
        "'15:00'|format_time('%Q')",
        "new.guests|parse_date('%Y')",
        "new.guests|md5",
        "new.title|lookup('x')",
    ] {
        assert!(eval(source).is_err(), "{source}");
    }
    assert!(eval(&format!("'{}'|parse_date('%Y')", "2".repeat(300))).is_err());
    assert!(eval(&format!("'15:00'|format_time('{}')", "%H".repeat(200))).is_err());
}
