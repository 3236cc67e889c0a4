%% @doc Makes environments that are missing when a task needs them (`[workers] auto_install'), one build at a time of each.
%%
%% A build is a program under a guard: it ends with the node, with everything it started, and after `install_timeout'. What it says is kept
%% in the pool's table, where views and the router read it; the manager hears `{installed, Name, ok | {error, Error}}' once.
%% A build that failed is tried again by the first task that comes a minute later, not by each one.
-module(framework_adapter_installer).
-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").

%% API
-export([start_link/0]).
-export([make/1]).
-export([allowed/0]).
-export([progress/1]).
-export([failed/1]).

%% gen_server
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2, format_status/1]).

%% After a failed build its reason is the answer for so long, in ms.
-define(AGAIN_AFTER_MS, 60000).
-define(TIMEOUT_MS, 1800000).
%% Longest line that is kept of what the installer says, in bytes.
-define(MAX_LINE, 600).
%% Variables that uv, pip and their programs are configured by; values never stand on a command line.
-define(VARIABLES, ["PATH", "LANG", "TMPDIR", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy",
                    "all_proxy", "no_proxy", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC"]).
-define(PREFIXES, ["UV_", "PIP_", "XDG_", "PYENV_", "SSL_"]).
%% Interpreters that may run the installer, the first that is there.
-define(PYTHONS, ["python3", "python3.11", "python3.12", "python3.13"]).

-record(build, {env :: framework_adapter_lock:env(), timer :: reference(), since_ms :: integer(), line = <<>> :: binary(),
                made = false :: boolean()}).
-type builds() :: #{port() => #build{}}.

%% @doc Starts the process; the manager makes anew what it still waits for.
-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc Makes an environment unless that is under way.
-spec make(framework_adapter_lock:env()) -> ok.
make(Env) ->
    gen_server:cast(?MODULE, {make, Env}).

%% @doc Whether the configuration allows it.
-spec allowed() -> boolean().
allowed() ->
    agent_config:get([workers, auto_install], false) =:= true.

%% @doc What is being done for an environment, where something is.
-spec progress(binary()) -> {installing, binary()} | none.
progress(Name) ->
    case look(Name) of
        #{state := installing, progress := Text, since_ms := Since} ->
            Seconds = integer_to_binary((erlang:monotonic_time(millisecond) - Since) div 1000),
            {installing, <<Text/binary, " (for ", Seconds/binary, " s)">>};
        _ ->
            none
    end.

%% @doc Why an environment could not be made lately.
-spec failed(binary()) -> {true, binary()} | false.
failed(Name) ->
    Now = erlang:monotonic_time(millisecond),
    case look(Name) of
        #{state := failed, progress := Reason, since_ms := At} when Now - At < ?AGAIN_AFTER_MS -> {true, Reason};
        _ -> false
    end.

%% While the pool is being started again its table is not there.
-spec look(binary()) -> map() | none.
look(Name) ->
    try ets:lookup(framework_adapter_pool:table(), {install, Name}) of
        [{_, Row}] -> Row;
        [] -> none
    catch
        error:badarg -> none
    end.

-spec init([]) -> {ok, builds()}.
init([]) ->
    process_flag(trap_exit, true),
    true = ets:match_delete(framework_adapter_pool:table(), {{install, '_'}, '_'}),
    ok = tell({installer, self()}),
    {ok, #{}}.

-spec handle_call(term(), gen_server:from(), builds()) -> {reply, {error, unknown_call}, builds()}.
handle_call(_, _, Builds) ->
    {reply, {error, unknown_call}, Builds}.

-spec handle_cast({make, framework_adapter_lock:env()}, builds()) -> {noreply, builds()}.
handle_cast({make, #{name := Name} = Env}, Builds) ->
    case [x || #build{env = #{name := N}} <- maps:values(Builds), N =:= Name] of
        [] -> {noreply, open(Env, Builds)};
        _ -> {noreply, Builds}
    end.

-spec handle_info(term(), builds()) -> {noreply, builds()}.
handle_info({Port, {data, Bin}}, Builds) when is_map_key(Port, Builds) ->
    {noreply, Builds#{Port := said(port_guard:decode(Bin), maps:get(Port, Builds))}};
handle_info({timeout, Timer, Port}, Builds) when is_map_key(Port, Builds) ->
    case Builds of
        #{Port := #build{timer = Timer}} ->
            Limit = integer_to_binary(timeout_ms() div 1000),
            {noreply, ended({error, <<"it was not made within ", Limit/binary, " s ([workers] install_timeout)">>}, Port, Builds)};
        _ ->
            {noreply, Builds}
    end;
handle_info({Port, {exit_status, _}}, Builds) when is_map_key(Port, Builds) ->
    #build{made = Made, line = Line} = maps:get(Port, Builds),
    {noreply, ended(case Made of true -> ok; false -> {error, Line} end, Port, Builds)};
handle_info({'EXIT', Port, _}, Builds) when is_map_key(Port, Builds) ->
    {noreply, ended({error, <<"the installer's guard ended">>}, Port, Builds)};
handle_info(_, Builds) ->
    {noreply, Builds}.

%% ---- one build

-spec open(framework_adapter_lock:env(), builds()) -> builds().
open(#{name := Name} = Env, Builds) ->
    case {interpreter(), python_environment:locks()} of
        {{ok, Python}, {ok, Locks}} ->
            Variables = variables(),
            Args = framework_adapter_env:installer_args(Env, #{python => Python, locks => filename:absname(Locks),
                                                               variables => [N || {N, _} <- Variables]}),
            Port = port_guard:open(run, Args, Variables),
            Build = #build{env = Env, timer = erlang:start_timer(timeout_ms(), self(), Port),
                           since_ms = erlang:monotonic_time(millisecond)},
            show(installing, <<"it begins">>, Build),
            ?LOG_NOTICE(#{msg => environment_begins, environment => Name}, #{domain => [agent, adapters]}),
            Builds#{Port => Build};
        {none, _} ->
            fail(Env, <<"there is no Python 3.11 to 3.13 that could run the installer; set SINGULARITY_PYTHON">>),
            Builds;
        {_, none} ->
            fail(Env, <<"the node does not know where the locks are; set SINGULARITY_PYTHONPATH">>),
            Builds
    end.

-spec said(port_guard:message(), #build{}) -> #build{}.
said({log, _, Line}, B) ->
    Text = binary:part(Line, 0, min(?MAX_LINE, byte_size(Line))),
    show(installing, Text, B),
    B#build{line = Text};
said({ready, _}, B) ->
    B#build{made = true};
said({failed, _} = Failed, B) ->
    B#build{line = port_guard:cause(Failed)};
said(_, B) ->
    B.

-spec ended(ok | {error, binary()}, port(), builds()) -> builds().
ended(How, Port, Builds) ->
    {#build{env = #{name := Name} = Env, timer = Timer, since_ms = Since}, Rest} = maps:take(Port, Builds),
    _ = erlang:cancel_timer(Timer),
    port_guard:close(Port),
    case How of
        ok ->
            true = ets:delete(framework_adapter_pool:table(), {install, Name}),
            ?LOG_NOTICE(#{msg => environment_made, environment => Name, ms => erlang:monotonic_time(millisecond) - Since},
                        #{domain => [agent, adapters]}),
            tell({installed, Name, ok});
        {error, Reason} ->
            fail(Env, Reason)
    end,
    Rest.

-spec tell(term()) -> ok.
tell(Message) ->
    %% A manager that is being started again asks anew.
    case whereis(framework_adapter_manager) of
        undefined -> ok;
        Manager -> Manager ! Message, ok
    end.

-spec fail(framework_adapter_lock:env(), binary()) -> ok.
fail(#{name := Name, framework := Framework, installs := Installs} = Env, Reason) ->
    ?LOG_WARNING(#{msg => environment_failed, environment => Name, reason => Reason}, #{domain => [agent, adapters]}),
    Text = <<"the Python environment ", Name/binary, " could not be made: ", Reason/binary,
             "; run: singularity frameworks install ", Installs/binary>>,
    show(failed, Text, #build{env = Env, timer = make_ref(), since_ms = erlang:monotonic_time(millisecond)}),
    Metadata = #{<<"framework">> => Framework, <<"environment">> => Name},
    tell({installed, Name, {error, agent_error:new(framework_unavailable, Text, Metadata)}}).

-spec show(installing | failed, binary(), #build{}) -> ok.
show(State, Text, #build{env = #{name := Name}, since_ms = Since}) ->
    true = ets:insert(framework_adapter_pool:table(), {{install, Name}, #{state => State, progress => Text, since_ms => Since}}),
    ok.

-spec timeout_ms() -> pos_integer().
timeout_ms() ->
    agent_config:get([workers, install_timeout_ms], ?TIMEOUT_MS).

%% ---- what it runs with

%% One of PATH, else that of an environment that is there.
-spec interpreter() -> {ok, file:filename()} | none.
interpreter() ->
    Named = [os:getenv("SINGULARITY_PYTHON", "") | ?PYTHONS],
    Made = [python_environment:python(Name) || Name <- [<<"custom">>, <<"langchain">>]],
    Found = [P || P <- [os:find_executable(N) || N <- Named, N =/= ""] ++ Made, P =/= false, filelib:is_regular(P)],
    case Found of [Python | _] -> {ok, Python}; [] -> none end.

%% The node's own home is its state folder; uv and pip look for their files in that of whoever started it.
-spec variables() -> [{string(), binary()}].
variables() ->
    All = [{Name, unicode:characters_to_binary(Value)} || {Name, Value} <- os:env(), is_handed_on(Name)],
    case [H || Name <- ["SINGULARITY_USER_HOME", "HOME"], H <- [os:getenv(Name, "")], H =/= ""] of
        [] -> All;
        [Home | _] -> [{"HOME", unicode:characters_to_binary(Home)} | All]
    end.

-spec is_handed_on(string()) -> boolean().
is_handed_on(Name) ->
    lists:member(Name, ?VARIABLES) orelse lists:any(fun(P) -> lists:prefix(P, Name) end, ?PREFIXES).

%% The guard sees the end of its port and takes the build down.
-spec terminate(term(), builds()) -> ok.
terminate(_, Builds) ->
    lists:foreach(fun port_guard:close/1, maps:keys(Builds)).

-spec format_status(gen_server:format_status()) -> gen_server:format_status().
format_status(Status) ->
    maps:map(fun(state, Builds) -> [Name || #build{env = #{name := Name}} <- maps:values(Builds)];
                (_, Other) -> Other
             end, Status).
