%% @doc The checked configuration, read once at start into `persistent_term'.
%%
%% `singularity_config' parses and checks the TOML file and writes one Erlang map; nothing else here parses anything. Keys of
%% the fixed schema are atoms, names of users are binaries; durations are `*_ms', sizes bytes.
-module(agent_config).

-export([ensure/0]).
-export([load/0]).
-export([load/1]).
-export([get/2]).
-export([native/0]).
-export([put/1]).

-define(KEY, {agent_core, config}).

%% @doc Loads the configuration unless one was put before, as tests do. The first application that starts calls it: a node
%% without a configuration does not start.
-spec ensure() -> ok | {error, agent_error:t()}.
ensure() ->
    case persistent_term:get(?KEY, none) of
        none -> load();
        _ -> ok
    end.

%% @doc Loads the file named by `SINGULARITY_TERMS' or the environment of the application.
-spec load() -> ok | {error, agent_error:t()}.
load() ->
    case os:getenv("SINGULARITY_TERMS") of
        false ->
            case application:get_env(agent_core, config_terms) of
                {ok, File} -> load(File);
                undefined -> missing("SINGULARITY_TERMS is not set")
            end;
        File ->
            load(File)
    end.

%% @doc Loads a file of terms that `singularity_config render' wrote.
-spec load(file:filename_all()) -> ok | {error, agent_error:t()}.
load(File) ->
    case file:consult(File) of
        {ok, [Config]} when is_map(Config) -> put(Config);
        {ok, _} -> missing("it does not hold one map");
        {error, Reason} -> missing(file:format_error(Reason))
    end.

-spec missing(iodata()) -> {error, agent_error:t()}.
missing(Why) ->
    {error, agent_error:new(invalid_field, ["the node's configuration terms cannot be read: ", Why,
                                            "; run: singularity config check"])}.

%% @doc Makes a configuration the node's; for the start and for tests.
-spec put(map()) -> ok.
put(Config) ->
    persistent_term:put(?KEY, Config).

%% @doc The value at a path, or `Default'.
-spec get([atom() | binary()], Default) -> term() | Default.
get(Path, Default) ->
    find(Path, persistent_term:get(?KEY, #{}), Default).

-spec find([atom() | binary()], term(), Default) -> term() | Default.
find([], undefined, Default) ->
    Default;
find([], Value, _) ->
    Value;
find([Key | Rest], Map, Default) when is_map(Map) ->
    case Map of
        #{Key := Value} -> find(Rest, Value, Default);
        #{} -> Default
    end;
find(_, _, Default) ->
    Default.

%% @doc The part that Rust reads: JSON text, opaque to us.
-spec native() -> binary().
native() ->
    get([native], <<"{}">>).
