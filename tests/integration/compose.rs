//! The files that containers are made from, read against the program that runs in them. No container engine is
//! needed for that: what Compose and Docker would do with the files is not tried here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use api::cli::Cli;
use clap::{Arg, CommandFactory as _, Parser as _};
use serde_json::Value;

#[test]
fn the_program_knows_each_command_and_each_variable_of_its_services_and_takes_the_values() {
    let (compose, example) = (compose(), example());
    let mut seen = BTreeSet::new();
    for (name, service) in ours(&compose) {
        seen.insert(name);
        let words = words(&service["command"]);
        let arguments = arguments(&words);
        // As arguments, which win over the environment of whoever runs the tests.
        let mut line = vec!["minutebook".to_owned()];
        line.extend(words.into_iter().map(str::to_owned));
        for (variable, value) in service["environment"].as_object().unwrap() {
            let argument =
                reads(&arguments, variable).unwrap_or_else(|| panic!("{name}: {variable} is not read"));
            line.push(format!("--{}", argument.get_long().unwrap()));
            line.push(filled(value.as_str().unwrap(), &example));
        }
        if let Err(error) = Cli::try_parse_from(&line) {
            panic!("{name}: {error}");
        }
    }
    assert_eq!(seen, BTreeSet::from(["api", "migrate", "projector", "publisher"]));
}

#[test]
fn the_example_lists_the_variables_that_are_interpolated_with_their_defaults() {
    let (compose, example) = (compose(), example());
    let mut interpolated = BTreeMap::new();
    for text in strings(&compose) {
        for (name, rest) in variables(text) {
            // What has no default is demanded, and the example leaves it empty.
            let default = rest.strip_prefix(":-").unwrap_or_else(|| {
                assert!(rest.starts_with(":?"), "{name} has no default and is not demanded");
                ""
            });
            let before = interpolated.insert(name.to_owned(), default.to_owned());
            assert!(before.is_none_or(|before| before == default), "{name} has two defaults");
        }
    }
    assert_eq!(interpolated, example);
    assert_eq!(example["POSTGRES_PASSWORD"], "");

    let arguments = arguments(&["serve"]);
    for (name, value) in &example {
        let Some(default) =
            reads(&arguments, name).and_then(|argument| argument.get_default_values().first())
        else {
            continue;
        };
        assert_eq!(default, value.as_str(), "{name} has the program's own default");
    }
}

#[test]
fn the_database_is_healthy_and_migrated_before_anything_runs_on_it_and_nats_before_the_publisher() {
    let compose = compose();
    for (name, service) in ours(&compose) {
        let mut expected = BTreeMap::from([("postgres", "service_healthy")]);
        if name != "migrate" {
            expected.insert("migrate", "service_completed_successfully");
        }
        if name == "publisher" {
            expected.insert("nats", "service_healthy");
        }
        let waits = service["depends_on"].as_object().unwrap().iter();
        let waits = waits.map(|(other, how)| (other.as_str(), how["condition"].as_str().unwrap())).collect();
        assert_eq!(expected, waits, "{name}");
    }
    let migrate = &compose["services"]["migrate"];
    assert_eq!(words(&migrate["command"]), ["migrate"]);
    assert_eq!(migrate["restart"], "no", "what is started again is never completed");
}

#[test]
fn the_urls_lead_to_services_of_the_same_file() {
    let compose = compose();
    let postgres = &compose["services"]["postgres"]["environment"];
    let part = |name: &str| postgres[name].as_str().unwrap();
    let (user, password, database) = (part("POSTGRES_USER"), part("POSTGRES_PASSWORD"), part("POSTGRES_DB"));
    for (name, service) in ours(&compose) {
        let expected = format!("postgres://{user}:{password}@postgres:5432/{database}");
        assert_eq!(service["environment"]["DATABASE_URL"], expected, "{name}");
    }
    assert_eq!(compose["services"]["publisher"]["environment"]["NATS_URL"], "nats://nats:4222");
}

#[test]
fn nats_syncs_each_write_to_a_volume() {
    let compose = compose();
    let nats = &compose["services"]["nats"];
    let mounted = nats["configs"][0]["target"].as_str().unwrap();
    assert!(words(&nats["command"]).contains(&mounted), "the server reads the configuration");
    let source = nats["configs"][0]["source"].as_str().unwrap();
    let content = compose["configs"][source]["content"].as_str().unwrap();
    let jetstream = content.split_once("jetstream {").unwrap().1.split_once('}').unwrap().0;
    let settings = settings(jetstream);
    assert_eq!(settings.get("sync_interval"), Some(&"always"));
    assert_eq!(volumes(&compose, "nats").get(settings["store_dir"]), Some(&"nats"));

    let port = self::settings(content)["http_port"];
    let asked = words(&nats["healthcheck"]["test"]).pop().unwrap();
    assert_eq!(asked, format!("http://127.0.0.1:{port}/healthz"));
}

#[test]
fn postgres_keeps_its_data_in_a_volume() {
    // Until 17: from 18 on the image has its data elsewhere.
    let compose = compose();
    assert!(compose["services"]["postgres"]["image"].as_str().unwrap().starts_with("postgres:17"));
    assert_eq!(volumes(&compose, "postgres").get("/var/lib/postgresql/data"), Some(&"postgres"));
}

#[test]
fn every_service_that_stays_is_watched_and_started_again_and_may_finish() {
    let compose = compose();
    let arguments = arguments(&["serve"]);
    let default = |variable: &str| {
        reads(&arguments, variable).unwrap().get_default_values()[0].to_str().unwrap().to_owned()
    };
    let (listen, longest) = (default("MINUTEBOOK_LISTEN"), default("MINUTEBOOK_REQUEST_TIMEOUT"));
    for (name, service) in services(&compose) {
        if name == "migrate" {
            continue;
        }
        assert_eq!(service["restart"], "unless-stopped", "{name}");
        let test = words(&service["healthcheck"]["test"]);
        assert_eq!(test[0], "CMD", "{name}: not every image has a shell");
        if !is_ours(service) {
            continue;
        }
        assert_eq!(test.last().unwrap(), &format!("http://{listen}/readyz"), "{name}");
        let grace = service["stop_grace_period"].as_str().unwrap().strip_suffix('s').unwrap();
        assert!(grace.parse::<u32>().unwrap() > longest.parse().unwrap(), "{name}: {grace} s");
    }
}

#[test]
fn no_service_opens_a_port_while_there_is_no_tls() {
    for (name, service) in services(&compose()) {
        assert!(service["ports"].is_null() && service["network_mode"].is_null(), "{name}");
    }
}

#[test]
fn every_image_has_a_tag_that_stays() {
    let compose = compose();
    let images = services(&compose).map(|(_, service)| service["image"].as_str().unwrap().to_owned());
    for image in images.chain(stages()) {
        let tag = image.rsplit('/').next().unwrap().split_once(':').map(|(_, tag)| tag);
        assert!(tag.is_some_and(|tag| !tag.is_empty() && !tag.contains("latest")), "{image}");
    }
}

#[test]
fn one_service_builds_the_image_because_two_at_a_time_fail() {
    let compose = compose();
    let building = services(&compose).filter(|(_, service)| !service["build"].is_null());
    assert_eq!(building.map(|(name, _)| name).collect::<Vec<_>>(), ["migrate"]);
    assert!(is_ours(&compose["services"]["migrate"]));
}

#[test]
fn the_image_is_built_by_a_rust_that_is_new_enough_for_the_debian_that_it_runs_on() {
    let [build, run] = stages().try_into().unwrap();
    let (rust, debian) = build.strip_prefix("rust:").unwrap().split_once("-slim-").unwrap();
    let least = env!("CARGO_PKG_RUST_VERSION");
    assert!(version(rust) >= version(least), "{rust} is older than {least}");
    assert_eq!(
        run,
        format!("debian:{debian}-slim"),
        "the program is linked against the C library of the one"
    );
}

#[test]
fn the_image_runs_the_program_and_not_as_root() {
    let array = |instruction| serde_json::from_str::<Vec<String>>(&last(instruction)).unwrap();
    let line = [array("ENTRYPOINT"), array("CMD")].concat();
    assert_eq!(line, ["minutebook", "serve"]);
    Cli::try_parse_from(line).unwrap();
    let user = last("USER");
    let user = user.split(':').next().unwrap();
    assert!(user.parse::<u32>().unwrap() > 0, "{user}");
}

#[test]
fn the_build_is_given_the_workspace_and_nothing_else() {
    let manifest = read("Cargo.toml");
    let members = manifest.split_once("members = [").unwrap().1.split_once(']').unwrap().0;
    let mut expected: BTreeSet<_> = members.split('"').skip(1).step_by(2).collect();
    expected.extend(["Cargo.toml", "Cargo.lock", "migrations"]);

    let ignore = read(".dockerignore");
    let lines = ignore.lines().filter(|line| !line.starts_with('#'));
    let (let_through, left_out): (Vec<_>, Vec<_>) = lines.partition(|line| line.starts_with('!'));
    assert_eq!(left_out, ["*"]);
    assert_eq!(let_through.iter().map(|line| &line[1..]).collect::<BTreeSet<_>>(), expected);
}

/// Reads a file of the repository.
fn read(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::fs::read_to_string(root.join(name)).unwrap()
}

/// Returns docker-compose.yml with what it merges, before interpolation.
fn compose() -> Value {
    let mut compose: yaml_serde::Value = yaml_serde::from_str(&read("docker-compose.yml")).unwrap();
    compose.apply_merge().unwrap();
    yaml_serde::from_value(compose).unwrap()
}

fn services(compose: &Value) -> impl Iterator<Item = (&str, &Value)> {
    compose["services"].as_object().unwrap().iter().map(|(name, service)| (name.as_str(), service))
}

/// Returns the services that run Minutebook: the others are other people's images.
fn ours(compose: &Value) -> impl Iterator<Item = (&str, &Value)> {
    services(compose).filter(|(_, service)| is_ours(service))
}

fn is_ours(service: &Value) -> bool {
    service["image"] == "minutebook:local"
}

/// Returns where a service mounts which of the named volumes.
fn volumes<'a>(compose: &'a Value, service: &str) -> BTreeMap<&'a str, &'a str> {
    let mounts = words(&compose["services"][service]["volumes"]).into_iter();
    let mounts = mounts.map(|mount| mount.split_once(':').unwrap());
    mounts
        .map(|(volume, target)| {
            assert!(compose["volumes"].get(volume).is_some(), "{volume} is not declared");
            (target, volume)
        })
        .collect()
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

/// Returns every text in a value.
fn strings(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(list) => list.iter().flat_map(strings).collect(),
        Value::Object(map) => map.values().flat_map(strings).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => vec![],
    }
}

/// Returns the names that Compose interpolates in a text, each with what follows it: `:-default`, `:?message`, or
/// nothing.
fn variables(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split('$').skip(1).map(|rest| {
        let braced = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let (inside, _) = braced.expect("no form but ${…} is used");
        let end = inside.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inside.len());
        inside.split_at(end)
    })
}

/// Returns a text as Compose interpolates it.
fn filled(text: &str, values: &BTreeMap<String, String>) -> String {
    variables(text).fold(text.to_owned(), |filled, (name, rest)| {
        filled.replace(&format!("${{{name}{rest}}}"), &values[name])
    })
}

/// Returns what .env.example sets.
fn example() -> BTreeMap<String, String> {
    let text = read(".env.example");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_once('=').unwrap()).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// Returns the `name: value` lines of a piece of NATS's configuration.
fn settings(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.trim().split_once(": ")).collect()
}

/// Returns the arguments that a command takes, those of every command included.
fn arguments(words: &[&str]) -> Vec<Arg> {
    let mut root = Cli::command();
    root.build();
    let names = words.iter().take_while(|word| !word.starts_with('-'));
    let command = names.fold(&root, |command, name| {
        command.find_subcommand(name).unwrap_or_else(|| panic!("there is no command {name}"))
    });
    command.get_arguments().cloned().collect()
}

/// Returns the argument that can be given by a variable.
fn reads<'a>(arguments: &'a [Arg], variable: &str) -> Option<&'a Arg> {
    arguments.iter().find(|argument| argument.get_env().is_some_and(|name| name == variable))
}

/// Returns the image that each stage of the Dockerfile starts from.
fn stages() -> Vec<String> {
    let dockerfile = read("Dockerfile");
    let stages = dockerfile.lines().filter_map(|line| line.strip_prefix("FROM "));
    stages.map(|stage| stage.split(' ').next().unwrap().to_owned()).collect()
}

/// Returns what the last of the Dockerfile's instructions of a kind says: it is the one that counts.
fn last(instruction: &str) -> String {
    let dockerfile = read("Dockerfile");
    let mut said = dockerfile.lines().filter_map(|line| line.strip_prefix(instruction)?.strip_prefix(' '));
    said.next_back().unwrap().to_owned()
}

fn version(text: &str) -> Vec<u32> {
    text.split('.').map(|part| part.parse().unwrap()).collect()
}
