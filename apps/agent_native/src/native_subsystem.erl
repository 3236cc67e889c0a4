%% @doc A watcher of one Rust subsystem: starts it, publishes its handle, hears when it ends or panics, and dies with it.
%%
%% A subsystem that cannot start (a database in use, a port taken) is a state of this process, retried with backoff, not a crash: an
%% outage spends nobody's intensity. One that ended is restarted by the supervisor.
%%
%% Callback modules say how: `start/2' is called in this process whenever the subsystem is to be started; `stop/1' when it is to end;
%% `up/2' after it has said `ready', `down/1' before its handle is withdrawn.
-module(native_subsystem).
-behaviour(gen_statem).

-include_lib("kernel/include/logger.hrl").

%% API
-export([start_link/2]).
-export([handle/1]).
-export([info/1]).
-export([await/2]).

%% gen_statem
-export([init/1, callback_mode/0, handle_event/4, terminate/3, format_status/1]).

-export_type([name/0]).

-define(BACKOFF_MIN_MS, 100).
-define(BACKOFF_MAX_MS, 5000).

-type name() :: store | providers | grpc | http.

-callback start(agent_native:runtime(), reference()) -> {ok, reference()} | {error, agent_error:t() | native_down | term()}.
-callback stop(reference()) -> ok | {error, native_down}.
-callback up(reference(), map()) -> ok.
-callback down(name()) -> ok.
%% Watchers of subsystems whose handles it holds: it ends with any of them, and starts again with the new handle.
-callback needs() -> [module()].
-optional_callbacks([up/2, down/1, needs/0]).

-record(sub, {
    name :: name(),
    module :: module(),
    ref = none :: none | reference(),
    handle = none :: none | reference(),
    runtime = none :: none | reference(),
    needs = [] :: [reference()],
    backoff = ?BACKOFF_MIN_MS :: pos_integer(),
    info = #{} :: map(),
    why = <<>> :: binary()
}).

%% @doc Starts the watcher `Module' of the subsystem `Name'; registered as `Module'.
-spec start_link(name(), module()) -> gen_statem:start_ret().
start_link(Name, Module) ->
    gen_statem:start_link({local, Module}, ?MODULE, {Name, Module}, []).

%% @doc The handle, while the subsystem is up.
-spec handle(name()) -> {ok, reference()} | {error, native_down}.
handle(Name) ->
    case persistent_term:get({?MODULE, Name}, none) of
        none -> {error, native_down};
        Handle -> {ok, Handle}
    end.

%% @doc What `ready' said, and the last reason for not being up.
-spec info(module()) -> #{state := atom(), info := map(), why := binary()}.
info(Module) ->
    gen_statem:call(Module, info).

%% @doc Waits until the subsystem is up.
-spec await(module(), timeout()) -> ok | {error, binary()}.
await(Module, Timeout) ->
    try gen_statem:call(Module, await, Timeout)
    catch
        exit:{timeout, _} ->
            #{why := Why} = info(Module),
            {error, Why};
        exit:{noproc, _} ->
            {error, <<"not started">>}
    end.

-spec callback_mode() -> gen_statem:callback_mode_result().
callback_mode() ->
    handle_event_function.

-spec init({name(), module()}) -> gen_statem:init_result(starting).
init({Name, Module}) ->
    process_flag(trap_exit, true),
    {ok, starting, #sub{name = Name, module = Module}, [{next_event, internal, start}]}.

-spec handle_event(gen_statem:event_type(), term(), starting | up, #sub{}) -> gen_statem:event_handler_result(starting | up).
handle_event(internal, start, starting, S = #sub{module = Module}) ->
    case native_runtime:runtime() of
        {error, native_down} ->
            retry(<<"the native runtime is not there">>, S);
        {ok, Runtime} ->
            Ref = make_ref(),
            %% Watched before their handles are taken: one that ends meanwhile is heard of.
            S1 = S#sub{runtime = monitor(process, native_runtime), needs = [monitor(process, M) || M <- optional(Module, needs, [], [])]},
            case Module:start(Runtime, Ref) of
                {ok, Handle} -> {keep_state, S1#sub{ref = Ref, handle = Handle}};
                {error, Error} -> retry(message(Error), S1)
            end
    end;
handle_event(state_timeout, retry, starting, _) ->
    {keep_state_and_data, [{next_event, internal, start}]};
handle_event(info, {agent_native, Ref, ready, Info}, starting, S = #sub{ref = Ref, name = Name, module = Module, handle = Handle}) ->
    persistent_term:put({?MODULE, Name}, Handle),
    persistent_term:put({?MODULE, was_up, Name}, true),
    ok = optional(Module, up, [Handle, Info], ok),
    ?LOG_NOTICE(#{msg => subsystem_up, subsystem => Name, info => Info}, #{domain => [agent, native]}),
    {next_state, up, S#sub{info = Info, backoff = ?BACKOFF_MIN_MS, why = <<>>}};
handle_event(info, {agent_native, Ref, error, #{metadata := #{<<"boot">> := <<"refused">>}} = Error}, starting,
             S = #sub{ref = Ref, name = Name}) ->
    refused(persistent_term:get({?MODULE, was_up, Name}, false), message(Error), S);
handle_event(info, {agent_native, Ref, error, Error}, starting, S = #sub{ref = Ref}) ->
    retry(message(Error), S);
handle_event(info, {agent_native, Ref, ended, #{reason := Why}}, _, S = #sub{ref = Ref, name = Name}) ->
    ?LOG_ERROR(#{msg => subsystem_ended, subsystem => Name, reason => Why}, #{domain => [agent, native]}),
    {stop, {subsystem_ended, Why}, withdraw(S)};
handle_event(info, {'DOWN', Monitor, process, _, _}, _, S = #sub{runtime = Monitor}) ->
    {stop, {shutdown, native_runtime_down}, withdraw(S)};
handle_event(info, {'DOWN', Monitor, process, _, _}, State, S = #sub{needs = Needs}) ->
    case lists:member(Monitor, Needs) of
        true when State =:= up; S#sub.handle =/= none -> {stop, {shutdown, needed_subsystem_down}, withdraw(S)};
        _ -> keep_state_and_data
    end;
handle_event({call, From}, info, State, #sub{info = Info, why = Why}) ->
    {keep_state_and_data, [{reply, From, #{state => State, info => Info, why => Why}}]};
handle_event({call, From}, await, up, _) ->
    {keep_state_and_data, [{reply, From, ok}]};
handle_event({call, _}, await, starting, _) ->
    {keep_state_and_data, [postpone]};
handle_event(info, {'EXIT', _, Reason}, _, S) ->
    {stop, Reason, S};
handle_event(_, _, _, _) ->
    keep_state_and_data.

%% What waiting does not heal ends a node that never was up: whoever starts it must see why. Later it may be our own file, on its way out.
-spec refused(WasUp :: boolean(), binary(), #sub{}) -> gen_statem:event_handler_result(starting).
refused(true, Why, S) ->
    retry(Why, S);
refused(false, Why, S = #sub{name = Name}) ->
    ?LOG_ERROR(#{msg => boot_refused, subsystem => Name, reason => Why}, #{domain => [agent, native]}),
    ok = init:stop(1),
    {keep_state, S#sub{why = Why}}.

-spec retry(binary(), #sub{}) -> gen_statem:event_handler_result(starting).
retry(Why, S = #sub{name = Name, backoff = Backoff, why = Before, runtime = Monitor, needs = Needs}) ->
    _ = [demonitor(M, [flush]) || M <- [Monitor | Needs], M =/= none],
    _ = [?LOG_WARNING(#{msg => subsystem_not_up, subsystem => Name, reason => Why}, #{domain => [agent, native]}) || Why =/= Before],
    {keep_state, S#sub{backoff = min(Backoff * 2, ?BACKOFF_MAX_MS), why = Why, ref = none, handle = none, runtime = none,
                       needs = []},
     [{state_timeout, Backoff, retry}]}.

%% What a callback module says, or what holds where it says nothing.
-spec optional(module(), atom(), [term()], term()) -> term().
optional(Module, Function, Args, Default) ->
    case erlang:function_exported(Module, Function, length(Args)) of
        true -> apply(Module, Function, Args);
        false -> Default
    end.

-spec withdraw(#sub{}) -> #sub{}.
withdraw(S = #sub{name = Name, module = Module}) ->
    _ = persistent_term:erase({?MODULE, Name}),
    ok = optional(Module, down, [Name], ok),
    S.

-spec message(term()) -> binary().
message(#{message := Message}) -> Message;
message(Other) -> iolist_to_binary(io_lib:format("~0p", [Other])).

-spec terminate(term(), starting | up, #sub{}) -> ok.
terminate(_Reason, _State, S = #sub{module = Module, handle = Handle}) ->
    _ = withdraw(S),
    _ = case Handle of none -> ok; _ -> Module:stop(Handle) end,
    ok.

-spec format_status(gen_statem:format_status()) -> gen_statem:format_status().
format_status(Status) ->
    Status.
