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
    assert_eq!(c["native"]["store"]["location"]["file"], "data/singularity.db");
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
fn tasks_side_by_side_in_a_worker_are_refused_where_there_can_be_none() {
    let concurrent = |framework: &str, n: u32| format!("[agents.a]\nframework = \"{framework}\"\nconcurrency = {n}\n");
    assert_eq!(good(&concurrent("langchain", 4))["agents"]["a"]["concurrency"].as_i64(), Some(4));
    good(&concurrent("crewai", 1));
    let e = bad(&concurrent("crewai", 2));
    assert!(e.contains("[agents.a] concurrency") && e.contains("max_per_framework"), "{e}");
    assert!(bad(&concurrent("native", 2)).contains("no worker process"));
    assert!(bad(&concurrent("langchain", 65)).contains("from 1 to 64"));
}

#[test]
fn a_key_is_never_in_the_file_and_never_repeated() {
    let e = bad("[providers.x]\ndialect = \"openai\"\nbase_url = \"http://a\"\napi_key = \"sk-very-secret\"\n");
    assert!(e.contains("never the key itself") && !e.contains("very-secret"), "{e}");
}

#[test]
fn labels_say_how_long_tasks_are_kept_and_a_server_has_a_spool() {
    let c = good("[store]\nurl = \"postgres://u@h/d\"\nca = \"ca.pem\"\n[store.keep_label]\n\"tier=audit\" = \"8760h\"\n");
    let store = &c["native"]["store"];
    assert_eq!(store["retention"]["labels"]["tier=audit"], 8760 * 3_600_000_i64);
    assert_eq!(store["location"]["server"], serde_json::json!({"url": "postgres://u@h/d", "spool": "data/spool", "ca": "ca.pem"}));
    assert!(bad("[store.keep_label]\naudit = \"1h\"\n").contains("\"audit\" is no label, as in \"tier=audit\""));
}

#[test]
fn off_loopback_needs_tls_and_keys() {
    let e = bad("[server]\naddress = \"0.0.0.0:50151\"\n");
    assert!(e.contains("tls") && e.contains("keys are needed"), "{e}");
    assert!(e.lines().all(|l| l.starts_with("t.toml:2: [server] address")), "{e}");
    good("[server]\naddress = \"[::1]:0\"\n");
}

#[test]
fn a_node_on_loopback_makes_environments_unless_it_is_told_not_to() {
    assert_eq!(good("")["workers"]["auto_install"], true);
    assert_eq!(good("[workers]\nauto_install = false\n")["workers"]["auto_install"], false);
    let mut root = Node::Map(vec![(node::Key::Fixed("workers".to_owned()), Node::Map(vec![]))]);
    finish::auto_install(&mut root, false);
    assert_eq!(root.json()["workers"]["auto_install"], false);
    let e = bad("[frameworks]\nlangchain = { python = \"3.9\" }\n");
    assert!(e.contains("3.11") && e.contains("3.13"), "{e}");
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
fn budgets_name_their_accounts_and_prices_are_those_of_a_million_tokens() {
    let file = std::env::temp_dir().join(format!("singularity-budget-key-{}", std::process::id()));
    std::fs::write(&file, "a-key-of-enough-length\n").unwrap();
    let c = good(&format!(
        "[tenants.acme]\nbudget = {{ month_usd = \"5\" }}\ndefault_task_cost = \"1\"\nagent_budgets = {{ coder = {{ day_usd = \"2.5\" }} }}\n\
         keys = [{{ file = \"{}\", budget = {{ total_usd = \"7\" }} }}]\n\
         [[models.m.prices]]\nvalid_from = \"2026-01-31\"\ninput = \"0.0375\"\noutput = \"3\"\n",
        file.display()
    ));
    std::fs::remove_file(&file).unwrap();
    let acme = &c["budgets"]["acme"];
    assert_eq!(acme["default_task_cost_micros"], 1_000_000);
    let accounts: Vec<_> = acme["accounts"].as_array().unwrap().iter().map(|a| (a["level"].as_str(), a["limit_micros"].as_i64())).collect();
    assert_eq!(accounts, [(Some("tenant"), Some(5_000_000)), (Some("agent"), Some(2_500_000)), (Some("key"), Some(7_000_000))]);
    assert_eq!(acme["accounts"][2]["name"].as_str().map(str::len), Some(16));
    assert_eq!(c["native"]["budgets"]["acme"], *acme);
    assert_eq!(c["native"]["models"]["m"]["prices"][0]["input_micros"], 37_500);
}

#[test]
fn every_shipped_price_has_a_date_and_a_source_and_a_wrong_one_is_named() {
    assert_eq!(good("")["native"]["prices"], serde_json::json!([]), "no provider asks such prices");
    let hosts = "[providers.o]\ndialect = \"openai\"\nbase_url = \"https://api.openai.com/v1\"\n\
                 [providers.a]\ndialect = \"anthropic\"\nbase_url = \"https://api.anthropic.com\"\n";
    let c = good(hosts);
    let shipped = c["native"]["prices"].as_array().unwrap();
    assert!(shipped.len() > 10 && shipped.iter().all(|p| p["source"].is_string() && p["valid_from"].is_string()));
    assert!(shipped.iter().filter(|p| p["checked"].is_string()).count() > 5);
    let e = bad("[[models.m.prices]]\nvalid_from = \"soon\"\ninput = \"20000\"\n");
    assert!(e.contains("expected a date") && e.contains("per 1,000,000 tokens") && e.contains("entry 1 has no output"), "{e}");
    assert!(bad("[prices]\nfile = \"nowhere.toml\"\n").contains("nowhere.toml"));
}

#[test]
fn quality_is_a_share_and_nothing_else() {
    let of = |quality: &str| {
        format!(
            "[providers.e]\ndialect = \"echo\"\n[models.m]\nendpoints = [{{ provider = \"e\", name = \"echo\", quality = {quality} }}]\n"
        )
    };
    for (text, millionths) in [("0.85", 850_000), ("1", 1_000_000), ("0", 0), ("1e-1", 100_000)] {
        assert_eq!(good(&of(text))["native"]["models"]["m"]["endpoints"][0]["quality_millionths"], millionths, "{text}");
    }
    for text in ["1.5", "-0.1", "nan", "\"0.5\""] {
        assert!(bad(&of(text)).contains("a number from 0 to 1"), "{text}");
    }
}

#[test]
fn a_well_known_key_adds_its_provider() {
    let env = [("OPENAI_API_KEY", "k"), ("SINGULARITY_MODEL", "gpt-x")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let overrides = Overrides { env: env.into(), data_dir: Some("/d".into()) };
    let c = parse("t", "", &overrides).unwrap().json();
    assert_eq!(c["providers"]["openai"]["api_key"]["env"], "OPENAI_API_KEY");
    assert_eq!(c["models"]["default"]["endpoints"][0]["provider"], "openai");
    assert_eq!(c["native"]["store"]["location"]["file"], "/d/singularity.db");
}

#[test]
fn terms_hold_names_as_binaries_and_schema_as_atoms() {
    let terms = parse("t", "[agents.\"é\"]\ninstructions = 'a \"b\"'\n", &Overrides::default()).unwrap().erlang();
    assert!(terms.contains("<<195,169>> => #{"), "{terms}");
    assert!(terms.contains("instructions => <<97,32,34,98,34>>"), "{terms}");
    assert!(terms.ends_with("}.\n"));
}

#[test]
fn a_model_of_the_environment_is_served_by_the_files_first_provider() {
    let env = [("SINGULARITY_MODEL".to_owned(), "m".to_owned())];
    let overrides = Overrides { env: env.into(), data_dir: None };
    let c = parse("t", "[providers.mine]\ndialect = \"openai\"\nbase_url = \"http://127.0.0.1:9/v1\"\n", &overrides).unwrap().json();
    assert_eq!(c["models"]["default"]["endpoints"][0]["provider"], "mine");
    assert_eq!(c["models"]["default"]["endpoints"][0]["name"], "m");
}

/// What Erlang reads, word for word; `UPDATE_VECTORS=1 cargo test` writes it anew.
#[test]
fn the_terms_that_erlang_reads_are_those_of_the_vector() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/vectors/config");
    for name in ["default", "full"] {
        let toml = folder.join(format!("{name}.toml"));
        let terms = folder.join(format!("{name}.terms"));
        let text = std::fs::read_to_string(&toml).unwrap();
        let made = parse("t.toml", &text, &Overrides::default()).unwrap_or_else(|e| panic!("{}", e.join("\n"))).erlang();
        if std::env::var_os("UPDATE_VECTORS").is_some() {
            std::fs::write(&terms, &made).unwrap();
        }
        assert_eq!(made, std::fs::read_to_string(&terms).unwrap(), "{name}");
    }
}

#[test]
fn every_key_is_described() {
    let doc = include_str!("../../../../docs/configuration.md");
    let mut missing = Vec::new();
    keys(schema::Kind::Table(schema::ROOT), &mut |key| {
        if !doc.contains(&format!("`{key}`")) && !doc.contains(&format!("[{key}")) {
            missing.push(key.to_owned());
        }
    });
    assert!(missing.is_empty(), "docs/configuration.md says nothing of {missing:?}");
}

fn keys(kind: schema::Kind, tell: &mut impl FnMut(&str)) {
    match kind {
        schema::Kind::Table(fields) | schema::Kind::Tables(fields) => {
            for field in fields {
                tell(field.name);
                keys(field.kind, tell);
            }
        }
        schema::Kind::Named(kind) => keys(*kind, tell),
        _ => {}
    }
}
