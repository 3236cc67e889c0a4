%% @doc One zygote: the port of a guarded Python process that has imported a framework and forks workers.
%%
%% Its death costs no running task, only new starts until it is back; so it restarts the program itself, with backoff,
%% and spends no supervisor's intensity. The manager hears `{zygote, Env, up | {down, Reason}}'.
-module(framework_adapter_zygote).
-behaviour(gen_statem).

-include_lib("kernel/include/logger.hrl").

%% API
-export([start_link/2]).
-export([socket/1]).

%% gen_statem
-export([init/1, callback_mode/0, terminate/3, format_status/1]).
-export([starting/3, up/3, down/3]).

%% Time for the import of a framework, in ms (CrewAI takes up to 3.6 s on two cores).
-define(START_TIMEOUT_MS, 30000).
-define(BACKOFF_MIN_MS, 100).
-define(BACKOFF_MAX_MS, 5000).
%% Last lines kept for the error of a failed start.
-define(LOG_LINES, 20).

-record(zygote, {
    env :: framework_adapter_lock:env(),
    name :: binary(),
    manager :: pid(),
    port = none :: none | port(),
    os_pid = 0 :: non_neg_integer(),
    backoff = ?BACKOFF_MIN_MS :: pos_integer(),
    restarts = 0 :: non_neg_integer(),
    log = [] :: [binary()]
}).

%% @doc Starts the zygote of an environment; `Manager' is told of its states.
-spec start_link(framework_adapter_lock:env(), pid()) -> gen_statem:start_ret().
start_link(Env, Manager) ->
    gen_statem:start_link(?MODULE, {Env, Manager}, []).

%% @doc Path of the socket on which the zygote of an environment takes orders.
-spec socket(binary()) -> file:filename().
socket(Env) ->
    filename:join(framework_adapter_env:runtime_dir(), "z-" ++ binary_to_list(Env)).

-spec callback_mode() -> gen_statem:callback_mode_result().
callback_mode() ->
    state_functions.

-spec init({framework_adapter_lock:env(), pid()}) -> gen_statem:init_result(starting).
init({#{name := Name} = Env, Manager}) ->
    process_flag(trap_exit, true),
    {ok, starting, #zygote{env = Env, name = Name, manager = Manager}, [{next_event, internal, open}]}.

-spec starting(gen_statem:event_type(), term(), #zygote{}) -> gen_statem:event_handler_result(atom()).
starting(internal, open, Z = #zygote{env = Env, name = Name}) ->
    Socket = socket(Name),
    _ = file:delete(Socket),
    Port = port_guard:open(run, framework_adapter_env:zygote_args(Env, Socket)),
    OsPid = case erlang:port_info(Port, os_pid) of {os_pid, P} -> P; undefined -> 0 end,
    {keep_state, Z#zygote{port = Port, os_pid = OsPid, log = []}, [{state_timeout, ?START_TIMEOUT_MS, start}]};
starting(state_timeout, start, Z) ->
    fail(<<"the framework was not imported in time">>, Z);
starting(info, {Port, {data, Bin}}, Z = #zygote{port = Port}) ->
    case port_guard:decode(Bin) of
        {ready, Info} -> ready(Info, Z);
        Message -> message(Message, Z)
    end;
starting(Type, Event, Z) ->
    common(Type, Event, Z).

-spec up(gen_statem:event_type(), term(), #zygote{}) -> gen_statem:event_handler_result(atom()).
up(info, {Port, {data, Bin}}, Z = #zygote{port = Port}) ->
    message(port_guard:decode(Bin), Z);
up(Type, Event, Z) ->
    common(Type, Event, Z).

-spec down(gen_statem:event_type(), term(), #zygote{}) -> gen_statem:event_handler_result(atom()).
down(state_timeout, retry, Z) ->
    {next_state, starting, Z, [{next_event, internal, open}]};
down(info, _Late, Z) ->
    {keep_state, Z};
down(_, _, Z) ->
    {keep_state, Z}.

-spec ready(binary(), #zygote{}) -> gen_statem:event_handler_result(atom()).
ready(Info, Z = #zygote{name = Env, manager = Manager, os_pid = OsPid, restarts = Restarts}) ->
    Manager ! {zygote, Env, {up, #{os_pid => OsPid, info => Info, restarts => Restarts}}},
    {next_state, up, Z#zygote{backoff = ?BACKOFF_MIN_MS}}.

-spec message(port_guard:message(), #zygote{}) -> gen_statem:event_handler_result(atom()).
message({log, _, Line}, Z = #zygote{log = Log}) ->
    {keep_state, Z#zygote{log = lists:sublist([Line | Log], ?LOG_LINES)}};
message({up, #{host_pid := Pid}}, Z) ->
    {keep_state, Z#zygote{os_pid = Pid}};
message({failed, _} = Failed, Z) ->
    fail(port_guard:cause(Failed), Z);
message(_, Z) ->
    {keep_state, Z}.

-spec common(gen_statem:event_type(), term(), #zygote{}) -> gen_statem:event_handler_result(atom()).
common(info, {Port, {exit_status, Status}}, Z = #zygote{port = Port}) ->
    fail(iolist_to_binary(io_lib:format("the zygote ended with status ~b", [Status])), Z);
common(info, {'EXIT', Port, _}, Z = #zygote{port = Port}) ->
    fail(<<"the zygote's guard ended">>, Z);
common(info, {'EXIT', _, Reason}, _Z) ->
    {stop, Reason};
common(_, _, Z) ->
    {keep_state, Z}.

%% The end of the port ends the whole tree below the guard; a new one starts after the backoff.
-spec fail(binary(), #zygote{}) -> gen_statem:event_handler_result(atom()).
fail(Reason, Z = #zygote{name = Env, manager = Manager, port = Port, backoff = Backoff, restarts = N, log = Log}) ->
    port_guard:close(Port),
    ?LOG_WARNING(#{msg => zygote_down, env => Env, reason => Reason, retry_in_ms => Backoff},
                 #{domain => [agent, adapters]}),
    Manager ! {zygote, Env, {down, #{reason => Reason, log => lists:reverse(Log)}}},
    Next = Z#zygote{port = none, os_pid = 0, restarts = N + 1, backoff = min(Backoff * 2, ?BACKOFF_MAX_MS)},
    {next_state, down, Next, [{state_timeout, Backoff, retry}]}.

-spec terminate(term(), atom(), #zygote{}) -> ok.
terminate(_Reason, _State, #zygote{port = Port}) ->
    port_guard:close(Port).

-spec format_status(gen_statem:format_status()) -> gen_statem:format_status().
format_status(Status = #{data := Z = #zygote{log = Log}}) ->
    Status#{data => Z#zygote{log = [integer_to_binary(length(Log))]}};
format_status(Status) ->
    Status.
