%% @doc The embedded model's server: a guarded Python process on a loopback port, restarted when it dies.
%%
%% It runs only where a provider of the dialect `local' has no `base_url' of its own. The key that protects its port is made here at
%% each start and travels in the environment of that process alone.
-module(model_server).
-behaviour(gen_statem).

-include_lib("kernel/include/logger.hrl").

%% API
-export([start_link/0]).
-export([announce/0]).
-export([info/0]).

%% gen_statem
-export([init/1, callback_mode/0, terminate/3, format_status/1]).
-export([off/3, starting/3, up/3, down/3]).

%% Loading took 0.8 to 3 s on two cores; a cold disk may take longer.
%% Where the server finds the key that it asks for.
-define(KEY_VARIABLE, "SINGULARITY_LOCAL_KEY").
-define(START_TIMEOUT_MS, 60000).
-define(BACKOFF_MIN_MS, 200).
-define(BACKOFF_MAX_MS, 10000).

%% The Python environment that holds the model and its server.
-define(ENVIRONMENT, <<"llm">>).

-record(model, {
    provider = <<>> :: binary(),
    port = none :: none | port(),
    key = <<>> :: binary(),
    url = <<>> :: binary(),
    host_pid = 0 :: non_neg_integer(),
    backoff = ?BACKOFF_MIN_MS :: pos_integer(),
    restarts = 0 :: non_neg_integer(),
    why = <<>> :: binary()
}).

%% @doc Starts the owner.
-spec start_link() -> gen_statem:start_ret().
start_link() ->
    gen_statem:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc Says the port to the providers again, after they were restarted.
-spec announce() -> ok.
announce() ->
    gen_statem:cast(?MODULE, announce).

%% @doc `#{state, host_pid, restarts, why}'.
-spec info() -> map().
info() ->
    gen_statem:call(?MODULE, info).

-spec callback_mode() -> gen_statem:callback_mode_result().
callback_mode() ->
    state_functions.

-spec init([]) -> gen_statem:init_result(off | starting).
init([]) ->
    process_flag(trap_exit, true),
    Local = [Name || {Name, P} <- maps:to_list(agent_config:get([providers], #{})),
                     maps:get(dialect, P, undefined) =:= <<"local">>, maps:get(base_url, P, undefined) =:= undefined],
    case Local of
        [] -> {ok, off, #model{}};
        [Name | _] -> {ok, starting, #model{provider = Name}, [{next_event, internal, open}]}
    end.

-spec off(gen_statem:event_type(), term(), #model{}) -> gen_statem:event_handler_result(atom()).
off(Type, Event, M) ->
    common(Type, Event, off, M).

-spec starting(gen_statem:event_type(), term(), #model{}) -> gen_statem:event_handler_result(atom()).
starting(internal, open, M) ->
    case filelib:is_regular(python_environment:python(?ENVIRONMENT)) of
        true ->
            Key = base64:encode(crypto:strong_rand_bytes(24)),
            Port = port_guard:open(run, server_args(), [{?KEY_VARIABLE, Key}]),
            {keep_state, M#model{port = Port, key = Key}, [{state_timeout, ?START_TIMEOUT_MS, start}]};
        false ->
            fail(<<"the model's environment is not installed; run: make setup">>, M)
    end;
starting(state_timeout, start, M) ->
    fail(<<"the model did not load in time">>, M);
starting(info, {Port, {data, Bin}}, M = #model{port = Port}) ->
    case port_guard:decode(Bin) of
        {ready, Ready} -> ready(Ready, M);
        Message -> message(Message, M)
    end;
starting(Type, Event, M) ->
    common(Type, Event, starting, M).

-spec ready(binary(), #model{}) -> gen_statem:event_handler_result(atom()).
ready(Ready, M) ->
    case re:run(Ready, "\"port\": *([0-9]+)", [{capture, [1], binary}]) of
        {match, [Number]} ->
            M1 = M#model{url = <<"http://127.0.0.1:", Number/binary, "/v1">>, backoff = ?BACKOFF_MIN_MS, why = <<>>},
            tell(M1),
            {next_state, up, M1};
        nomatch ->
            fail(<<"the model server said no port">>, M)
    end.

-spec up(gen_statem:event_type(), term(), #model{}) -> gen_statem:event_handler_result(atom()).
up(cast, announce, M) ->
    tell(M),
    keep_state_and_data;
up(Type, Event, M) ->
    common(Type, Event, up, M).

-spec down(gen_statem:event_type(), term(), #model{}) -> gen_statem:event_handler_result(atom()).
down(state_timeout, retry, M) ->
    {next_state, starting, M, [{next_event, internal, open}]};
down(Type, Event, M) ->
    common(Type, Event, down, M).

-spec common(gen_statem:event_type(), term(), atom(), #model{}) -> gen_statem:event_handler_result(atom()).
common({call, From}, info, State, #model{host_pid = Pid, restarts = N, why = Why, url = Url}) ->
    {keep_state_and_data, [{reply, From, #{state => State, host_pid => Pid, restarts => N, why => Why, url => Url}}]};
common(info, {Port, {data, Bin}}, _, M = #model{port = Port}) ->
    message(port_guard:decode(Bin), M);
common(info, {Port, {exit_status, Status}}, _, M = #model{port = Port}) ->
    fail(iolist_to_binary(io_lib:format("the model server ended with status ~b", [Status])), M#model{port = none});
common(info, {'EXIT', Port, _}, _, #model{port = Port}) ->
    keep_state_and_data;
common(info, {'EXIT', Pid, Reason}, _, _) when is_pid(Pid) ->
    {stop, Reason};
common(_, _, _, _) ->
    keep_state_and_data.

-spec message(port_guard:message(), #model{}) -> gen_statem:event_handler_result(atom()).
message({up, #{host_pid := HostPid}}, M) ->
    {keep_state, M#model{host_pid = HostPid}};
message(_, _) ->
    keep_state_and_data.

-spec fail(binary(), #model{}) -> gen_statem:event_handler_result(down).
fail(Why, M = #model{backoff = Backoff, restarts = N, provider = Provider}) ->
    ?LOG_WARNING(#{msg => model_server_down, reason => Why, retry_in_ms => Backoff}, #{domain => [agent, providers]}),
    port_guard:close(M#model.port),
    set(Provider, unavailable),
    {next_state, down, M#model{port = none, host_pid = 0, url = <<>>, why = Why, restarts = N + 1,
                               backoff = min(Backoff * 2, ?BACKOFF_MAX_MS)}, [{state_timeout, Backoff, retry}]}.

-spec tell(#model{}) -> ok.
tell(#model{provider = Provider, url = Url, key = Key}) ->
    set(Provider, #{base_url => Url, api_key => Key}).

-spec set(binary(), map() | unavailable) -> ok.
set(Provider, Endpoint) ->
    case native_subsystem:handle(providers) of
        {ok, P} -> _ = agent_native:set_endpoint(P, Provider, Endpoint), ok;
        %% Not up yet: its watcher asks for the announcement when it is.
        {error, native_down} -> ok
    end.

-spec server_args() -> [string() | binary()].
server_args() ->
    PythonPath = case python_environment:source_path() of "" -> []; P -> ["--env", "PYTHONPATH=" ++ P] end,
    ["--env", "PATH=/usr/local/bin:/usr/bin:/bin", "--env", "LANG=C.UTF-8",
     "--env-of", ?KEY_VARIABLE] ++ PythonPath
        ++ ["--", python_environment:python(?ENVIRONMENT), "-P", "-m", "singularity_agents.model_server"].

-spec terminate(term(), atom(), #model{}) -> ok.
terminate(_Reason, _State, #model{port = Port}) ->
    port_guard:close(Port).

-spec format_status(gen_statem:format_status()) -> gen_statem:format_status().
format_status(Status = #{data := M = #model{}}) ->
    Status#{data => M#model{key = <<"redacted">>}};
format_status(Status) ->
    Status.
