use super::*;

fn good(text: &str) -> serde_json::Value {
    parse("t.toml", text, &Overrides::default()).map(|c| c.json()).unwrap_or_else(|e| panic!("{}", e.join("\n")))
}

fn bad(text: &str) -> String {
    parse("t.toml", text, &Overrides::default()).map(|_| ()).unwrap_err().join("\n")
}

#[test]
fn an_empty_file_gives_a_node_on_the_embedded_model() {
    let c = good("");
    assert_eq!(c["providers"]["local"]["dialect"], "local");
    assert_eq!(c["models"]["default"]["endpoints"][0]["name"], "smollm2-135m");
    assert_eq!(c["workers"]["max_memory"], 1 << 30);
    assert_eq!(c["server"]["drain_timeout_ms"], 30_000);
    assert_eq!(c["native"]["store"]["path"], "data/singularity.db");
    assert_eq!(c["agent_types"]["researcher"]["tools"][1], "calculate");
}

#[test]
fn both_documents_of_the_original_vision_load() {
    let native = good(include_str!("../../../../config/native_first.toml"));
    assert_eq!(
        (native["agent_execution"]["default_execution_method"].as_str(), native["frameworks"]["autogen"]["enabled"].as_bool()),
        (Some("native"), Some(false))
    );
    let framework = good(include_str!("../../../../config/framework_first.toml"));
    assert_eq!(framework["framework_preferences"]["planning_tasks"], "native");
    assert_eq!(framework["agent_execution"]["native_optimization"], "balanced");
    good(include_str!("../../../../config/singularity.toml"));
}

#[test]
fn every_fault_is_named_with_line_and_nearest_key() {
    let text =
        "[agents.researcher]\nframwork = \"langchain\"\n[workers]\nmax_memory = 5\nwarm = -1\n[providers.x]\nbase_url = \"http://a\"\n";
    let e = bad(text);
    assert!(e.contains("t.toml:2: [agents.researcher] framwork = \"langchain\""), "{e}");
    assert!(e.contains("did you mean \"framework\"?"), "{e}");
    assert!(e.contains("t.toml:4:") && e.contains("a size as text"), "{e}");
    assert!(e.contains("t.toml:5:") && e.contains("0 to 64"), "{e}");
    assert!(e.contains("t.toml:6:") && e.contains("\"dialect\" is missing"), "{e}");
}

#[test]
fn a_key_is_never_in_the_file_and_never_repeated() {
    let e = bad("[providers.x]\ndialect = \"openai\"\nbase_url = \"http://a\"\napi_key = \"sk-very-secret\"\n");
    assert!(e.contains("never the key itself") && !e.contains("very-secret"), "{e}");
}

#[test]
fn off_loopback_needs_tls_and_keys() {
    let e = bad("[server]\naddress = \"0.0.0.0:50151\"\n");
    assert!(e.contains("tls") && e.contains("keys are needed"), "{e}");
    good("[server]\naddress = \"[::1]:0\"\n");
}

#[test]
fn tenants_keys_leave_only_their_hash() {
    let file = std::env::temp_dir().join(format!("singularity-key-{}", std::process::id()));
    std::fs::write(&file, "a-key-of-enough-length\n").unwrap();
    let c = good(&format!("[tenants.acme]\nkeys = [{{ file = \"{}\" }}]\n", file.display()));
    std::fs::remove_file(&file).unwrap();
    assert_eq!(c["native"]["tenants"]["acme"]["key_sha256"][0].as_str().map(str::len), Some(64));
    assert!(!c.to_string().contains("enough-length"));
}

#[test]
fn a_well_known_key_adds_its_provider() {
    let env = [("OPENAI_API_KEY", "k"), ("SINGULARITY_MODEL", "gpt-x")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let overrides = Overrides { env: env.into(), data_dir: Some("/d".into()) };
    let c = parse("t", "", &overrides).unwrap().json();
    assert_eq!(c["providers"]["openai"]["api_key"]["env"], "OPENAI_API_KEY");
    assert_eq!(c["models"]["default"]["endpoints"][0]["provider"], "openai");
    assert_eq!(c["native"]["store"]["path"], "/d/singularity.db");
}

#[test]
fn terms_hold_names_as_binaries_and_schema_as_atoms() {
    let terms = parse("t", "[agents.\"é\"]\ninstructions = 'a \"b\"'\n", &Overrides::default()).unwrap().erlang();
    assert!(terms.contains("<<195,169>> => #{"), "{terms}");
    assert!(terms.contains("instructions => <<97,32,34,98,34>>"), "{terms}");
    assert!(terms.ends_with("}.\n"));
}
