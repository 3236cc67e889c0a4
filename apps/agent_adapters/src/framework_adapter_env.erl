%% @doc Frameworks by name, and the command lines of zygotes, workers and the installer.
%%
%% Reads files and configuration only. Environments are made by `singularity frameworks install', or by
%% {@link framework_adapter_installer} at first use; which one an agent has says {@link framework_adapter_lock}.
-module(framework_adapter_env).

-export([environment/1]).
-export([known/0]).
-export([has_adapter/1]).
-export([available/1]).
-export([lock_hash/1]).
-export([project/1]).
-export([concurrency/2]).
-export([installer_args/2]).
-export([zygote_args/2]).
-export([worker_args/1]).
-export([runtime_dir/0]).
-export([prepare_runtime_dir/0]).

%% Length of a Unix socket's path is at most 107 bytes; a name below the folder takes up to 44.
-define(MAX_RUNTIME_DIR, 60).

%% @doc The environment that a framework runs in: `custom:NAME' shares one, and LangGraph is part of LangChain's.
-spec environment(binary()) -> binary().
environment(<<"custom:", _/binary>>) -> <<"custom">>;
environment(<<"langgraph">>) -> <<"langchain">>;
environment(Framework) -> Framework.

%% @doc Frameworks that have an adapter in this version.
-spec known() -> [binary()].
known() ->
    [<<"langchain">>, <<"langgraph">>, <<"crewai">>, <<"autogen">>, <<"semantic_kernel">>, <<"haystack">>,
     <<"agent_framework">>, <<"custom">>].

%% @doc Whether the environment of a framework is there, and of its lock.
-spec available(binary()) -> ok | {error, agent_error:t()}.
available(Framework) ->
    case has_adapter(Framework) of
        ok -> framework_adapter_lock:state(framework_adapter_lock:of_framework(Framework));
        {error, Error} -> {error, Error}
    end.

%% @doc Whether a framework has an adapter in this version.
-spec has_adapter(binary()) -> ok | {error, agent_error:t()}.
has_adapter(Framework) ->
    case lists:member(environment(Framework), known()) of
        true ->
            ok;
        false ->
            {error, agent_error:new(framework_unavailable,
                                    <<"framework ", Framework/binary, " has no adapter in this version">>,
                                    #{<<"framework">> => Framework,
                                      <<"available">> => lists:join(<<", ">>, known())})}
    end.

%% @doc SHA-256 of the locks that a framework's own environment was made from, empty where unknown.
-spec lock_hash(binary()) -> binary().
lock_hash(Framework) ->
    framework_adapter_lock:stamp(maps:get(name, framework_adapter_lock:of_framework(Framework))).

%% @doc Arguments of `port_guard run' for the zygote of an environment. It looks at the lock itself, with every package.
-spec zygote_args(framework_adapter_lock:env(), file:filename()) -> [string() | binary()].
zygote_args(#{name := Name, framework := Framework, lock_hash := Lock, installs := Installs}, Socket) ->
    env_args(Name) ++ ["--", python_environment:python(Name), "-P", "-m", "singularity_agents.worker.zygote",
                       "--socket", Socket, "--framework", Framework]
        ++ lists:append([["--lock", Lock, "--remedy", <<"singularity frameworks install ", Installs/binary>>] || Lock =/= <<>>]).

%% @doc Arguments of `port_guard run' for the installer of an environment, where `Locks' lie; `Variables' are handed on by name.
-spec installer_args(framework_adapter_lock:env(), #{python := file:filename(), locks := file:filename(), variables := [string()]}) ->
    [string() | binary()].
installer_args(#{framework := Framework, requirements := Lock, python := Version},
               #{python := Python, locks := Locks, variables := Variables}) ->
    Path = case python_environment:source_path() of "" -> []; P -> ["--env", "PYTHONPATH=" ++ P] end,
    lists:append([["--env-of", Name] || Name <- Variables]) ++ Path
        ++ ["--env", "PYTHONUNBUFFERED=1", "--", Python, "-P", "-m", "singularity_agents._environments",
            "--locks", Locks, "--into", filename:absname(python_environment:folder()), "--framework", Framework]
        ++ lists:append([["--requirements", filename:absname(Lock)] || Lock =/= none])
        ++ lists:append([["--python", Version] || Version =/= <<>>]).

%% @doc Tasks of an agent that one worker of a framework runs side by side. Crews and their events are objects of a whole process.
-spec concurrency(Framework :: binary(), Agent :: map()) -> pos_integer().
concurrency(Framework, _) when Framework =:= <<"crewai">>; Framework =:= <<"native">> -> 1;
concurrency(_, Agent) -> maps:get(concurrency, Agent, 1).

%% @doc Folder of an agent's code, as a worker in a folder of its own finds it; empty where there is none.
-spec project(map()) -> binary().
project(#{project := Project}) when Project =/= <<>> ->
    filename:absname(Project);
project(_) ->
    <<>>.

%% @doc Arguments of `port_guard worker'.
-spec worker_args(#{environment := binary(), worker_id := binary(), data := file:filename(), zygote := file:filename(),
                    dir := file:filename(), project => binary()}) -> [string() | binary()].
worker_args(#{environment := Env, worker_id := Id, data := Data, zygote := Zygote, dir := Dir} = Spec) ->
    Project = maps:get(project, Spec, <<>>),
    Mode = agent_config:get([workers, isolation], <<"auto">>),
    ["--data", Data, "--zygote", Zygote, "--worker-id", Id, "--mode", Mode, "--dir", Dir]
        ++ env_args(Env)
        ++ ["--max-memory", integer_to_list(agent_config:get([workers, max_memory], 1 bsl 30)),
            "--max-processes", integer_to_list(agent_config:get([workers, max_processes], 64))]
        ++ lists:append([["--allow-read", P] || P <- readable(Env, Project)])
        ++ ["--allow-write", Dir]
        ++ lists:append([["--allow-connect", integer_to_list(P)] || P <- agent_config:get([workers, allow_connect], [])]).

%% The allow-list of the environment: nothing of the node's own is handed on.
-spec env_args(binary()) -> [string() | binary()].
env_args(Env) ->
    Bin = filename:dirname(python_environment:python(Env)),
    Fixed = [{"PATH", Bin ++ ":/usr/local/bin:/usr/bin:/bin"}, {"LANG", "C.UTF-8"}, {"PYTHONUNBUFFERED", "1"},
             {"PYTHONDONTWRITEBYTECODE", "1"}, {"PYTHONHASHSEED", "0"}, {"OPENBLAS_NUM_THREADS", "1"}],
    Zone = case os:getenv("TZ") of false -> []; Tz -> [{"TZ", Tz}] end,
    Path = case python_environment:source_path() of "" -> []; P -> [{"PYTHONPATH", P}] end,
    lists:append([["--env", K ++ "=" ++ V] || {K, V} <- Fixed ++ Zone ++ Path]).

-spec readable(binary(), binary()) -> [file:filename() | binary()].
readable(Env, Project) ->
    Base = base_prefix(Env),
    Sources = string:lexemes(python_environment:source_path(), ":"),
    [P || P <- [python_environment:dir(Env) | Base] ++ Sources ++ [Project], P =/= <<>>, P =/= ""].

%% The interpreter that the environment was made from lies elsewhere, and the worker imports from it.
-spec base_prefix(binary()) -> [file:filename()].
base_prefix(Env) ->
    case file:read_file(filename:join(python_environment:dir(Env), "pyvenv.cfg")) of
        {ok, Text} ->
            case re:run(Text, "^home *= *(.+)$", [multiline, {capture, [1], list}]) of
                {match, [Home]} -> [filename:dirname(string:trim(Home))];
                nomatch -> []
            end;
        {error, _} ->
            []
    end.

%% @doc Folder of sockets and of the workers' own folders: 0700, with a short path.
-spec runtime_dir() -> file:filename().
runtime_dir() ->
    Data = binary_to_list(agent_config:get([server, data_dir], <<"data">>)),
    Wanted = filename:join(filename:absname(Data), "run"),
    case length(Wanted) =< ?MAX_RUNTIME_DIR of
        true -> Wanted;
        false -> "/tmp/singularity-" ++ integer_to_list(erlang:phash2(Wanted, 1 bsl 32), 36)
    end.

%% @doc Makes the folder and removes what an earlier run of the node left in it.
-spec prepare_runtime_dir() -> ok | {error, file:posix()}.
prepare_runtime_dir() ->
    Dir = runtime_dir(),
    _ = file:del_dir_r(Dir),
    case filelib:ensure_dir(filename:join([Dir, "work", "x"])) of
        ok -> file:change_mode(Dir, 8#700);
        Error -> Error
    end.
