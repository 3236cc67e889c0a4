%% @doc One framework worker: the Erlang process that owns a guard (control) and a socket (frames).
%%
%% Life: `opening -> hello -> binding -> ready -> draining -> killing -> end'. It is leased by the manager to the owners of tasks (their
%% coordinators), one at a time or as many as the agent's `concurrency' says, and speaks to them only by message, `{adapter, LeaseRef,
%% What}'; it never calls upward. A cancelled task that does not end takes the process with it, and the tasks beside it are lost: they hear
%% that they shared it. It is `temporary': after a kill or a loss the manager starts another.
%%
%% Longer than most modules: it is the whole lifecycle in one place. A task's own part is {@link framework_adapter_lease}; the opening,
%% codecs, payloads, credit, pace of events, liveness, calls and the guard's report are modules of their own.
-module(framework_adapter_worker).
-behaviour(gen_statem).

-include_lib("kernel/include/logger.hrl").

%% API
-export([start_link/1]).
-export([lease/3]).
-export([execute/3]).
-export([cancel/3]).
-export([kill/2]).
-export([give_back/2]).
-export([delegated/4]).
-export([stop/1]).
-export([retire/1]).
-export([bind/2]).

%% gen_statem
-export([init/1, callback_mode/0, handle_event/4, terminate/3, format_status/1]).

-export_type([spec/0]).

%% From the opening of the guard to HELLO, and from INIT to READY, in ms.
-define(START_TIMEOUT_MS, 10000).
%% TERM to KILL when the grace was used up before.
-define(TERM_GRACE_MS, 20).
%% A task that is ended at once has so long to give way where others run in its process, in ms.
-define(SHARED_GRACE_MS, 1000).
%% The guard's own deadline for the proof is 1 s; ours is behind it.
-define(PROOF_TIMEOUT_MS, 2000).
%% Time for the guard's report after the channel ended.
-define(REPORT_TIMEOUT_MS, 1500).
%% An idle worker that is drained says GOODBYE at once; behind this it is ended all the same, in ms.
-define(DRAIN_TIMEOUT_MS, 1000).
-define(TICK_MS, 500).
-define(MAX_FRAME_BYTES, 16777216).
-define(LOG_LINES, 50).
-define(SIGUSR1, 10).
%% A worker of another machine says something every 250 ms; silent for so long it is lost, in ms.
-define(REMOTE_SILENCE_MS, 3000).
%% A stream lives as long as its connection, which ends after an hour: a worker is recycled between two tasks before that, in ms.
-define(REMOTE_AGE_MS, 3000000).
%% Kind of an EVENT frame that says no more than that the task goes on.
-define(BEAT, 6).

-type spec() :: #{
    id := binary(),
    framework := binary(),
    agent := map(),
    %% Name of the Python environment; one of another machine has its own.
    environment := binary(),
    tenant := binary(),
    manager := pid(),
    block_grace_ms := non_neg_integer(),
    recycle_after := pos_integer(),
    %% The stream of a worker of another machine; it gets its agent by `bind/2'.
    remote => agent_native:remote()
}.

-record(worker, {
    spec :: spec(),
    dir :: file:filename(),
    port = none :: none | port(),
    guard_pid = 0 :: non_neg_integer(),
    socket = none :: none | gen_tcp:socket(),
    %% In place of port and socket where the worker runs on another machine.
    remote = none :: none | framework_adapter_remote:remote(),
    stream = none :: none | reference(),
    heard_at = 0 :: integer(),
    hello = #{} :: map(),
    host_pid = 0 :: non_neg_integer(),
    layers = [] :: [binary()],
    in = framework_adapter_credit:new() :: framework_adapter_credit:credit(),
    out = framework_adapter_credit:new() :: framework_adapter_credit:credit(),
    leases = #{} :: #{reference() => framework_adapter_lease:lease()},
    %% Whose turn it is to send first, and whether no more tasks are taken.
    turn = 0 :: non_neg_integer(),
    retiring = false :: boolean(),
    pace = framework_adapter_pace:new() :: framework_adapter_pace:pace(),
    live = none :: none | framework_adapter_liveness:liveness(),
    rss = 0 :: non_neg_integer(),
    tasks = 0 :: non_neg_integer(),
    started_ms :: integer(),
    ready = #{} :: map(),
    report = framework_adapter_report:new() :: framework_adapter_report:report(),
    log = [] :: [binary()],
    killing = none :: none | #{why := term(), at_us := integer(), signals := [map()], fenced_at_ms => integer()}
}).

%% ---- API

%% @doc Starts the process; the guard is opened after it has returned.
-spec start_link(spec()) -> gen_statem:start_ret().
start_link(Spec) ->
    gen_statem:start_link(?MODULE, Spec, []).

%% @doc Manager only: gives the worker to an owner.
-spec lease(pid(), reference(), pid()) -> ok.
lease(Pid, LeaseRef, Owner) ->
    gen_statem:cast(Pid, {lease, LeaseRef, Owner}).

%% @doc Runs a task on a leased worker. The owner hears events and one end.
-spec execute(pid(), reference(), Task) -> ok when
      Task :: #{task_id := binary(), payload := agent_native:payload(), attempt := pos_integer(), fence := pos_integer(),
                stream_text => boolean(), deadline_ms => non_neg_integer(), header => map(), agent => map(),
                scope => binary(), life => pos_integer(), tool_limit => non_neg_integer()}.
execute(Pid, LeaseRef, Task) ->
    gen_statem:cast(Pid, {execute, LeaseRef, Task}).

%% @doc Closes the gate, asks for the end, and says `grace_over' to the owner if none came in `GraceMs'.
-spec cancel(pid(), reference(), non_neg_integer()) -> ok.
cancel(Pid, LeaseRef, GraceMs) ->
    gen_statem:cast(Pid, {cancel, LeaseRef, GraceMs}).

%% @doc Kills the worker's process tree; the owner hears `{gone, ProofMap}'.
-spec kill(pid(), reference()) -> ok.
kill(Pid, LeaseRef) ->
    gen_statem:cast(Pid, {kill, LeaseRef}).

%% @doc Gives back a worker on which nothing was run: its lease crossed the cancel of it.
-spec give_back(pid(), reference()) -> ok.
give_back(Pid, LeaseRef) ->
    gen_statem:cast(Pid, {give_back, LeaseRef}).

%% @doc The end of subtasks that the owner was asked for by `{delegate, Call, Request}'.
-spec delegated(pid(), reference(), Call :: reference(), {ok, binary()} | {error, agent_error:t()}) -> ok.
delegated(Pid, LeaseRef, Call, Answer) ->
    gen_statem:cast(Pid, {delegated, LeaseRef, Call, Answer}).

%% @doc Manager only: orderly end of an idle worker.
-spec stop(pid()) -> ok.
stop(Pid) ->
    gen_statem:cast(Pid, stop).

%% @doc Manager only: no more tasks; it ends once those that it has are done.
-spec retire(pid()) -> ok.
retire(Pid) ->
    gen_statem:cast(Pid, retire).

%% @doc Manager only: an offered worker of another machine becomes one of an agent and a tenant.
-spec bind(pid(), spec()) -> ok.
bind(Pid, Spec) ->
    gen_statem:cast(Pid, {bind, Spec}).

%% ---- lifecycle

-spec callback_mode() -> gen_statem:callback_mode_result().
callback_mode() ->
    handle_event_function.

-spec init(spec()) -> gen_statem:init_result(opening | offered).
init(#{remote := Stream} = Spec) ->
    process_flag(trap_exit, true),
    case framework_adapter_remote:open(Stream) of
        {ok, Remote, Ref} ->
            W = #worker{spec = Spec, dir = "", remote = Remote, stream = Ref, started_ms = erlang:system_time(millisecond)},
            {ok, offered, W, [{state_timeout, ?START_TIMEOUT_MS, start}]};
        {error, Reason} ->
            {stop, {shutdown, Reason}}
    end;
init(#{id := Id} = Spec) ->
    process_flag(trap_exit, true),
    Dir = filename:join([framework_adapter_env:runtime_dir(), "work", binary_to_list(Id)]),
    W = #worker{spec = Spec, dir = Dir, started_ms = erlang:system_time(millisecond)},
    {ok, opening, W, [{next_event, internal, open}, {state_timeout, ?START_TIMEOUT_MS, start}]}.

-spec handle_event(gen_statem:event_type(), term(), atom(), #worker{}) -> gen_statem:event_handler_result(atom()).
handle_event(internal, open, opening, W) ->
    case open(W) of
        {ok, W1} -> {next_state, hello, W1, [{state_timeout, ?START_TIMEOUT_MS, start}]};
        {error, Detail, W1} -> lose(worker_start_failed, Detail, opening, W1)
    end;
handle_event(state_timeout, start, State, W) ->
    lose(worker_start_failed, <<"the worker was not ready in time">>, State, W);

handle_event(state_timeout, drain, draining, W) ->
    kill_tree(recycled, ?TERM_GRACE_MS, draining, W);

%% frames
handle_event(info, {tcp, S, Bin}, State, W = #worker{socket = S}) ->
    case framework_adapter_frame:decode(Bin) of
        {ok, Frame} -> counted(Frame, byte_size(Bin), State, W);
        {error, Why} -> protocol_error(io_lib:format("bad frame header: ~0p", [Why]), State, W)
    end;
handle_event(info, {tcp_passive, S}, _, #worker{socket = S}) ->
    ok = framework_adapter_opening:more(S),
    keep_state_and_data;
handle_event(info, {agent_native, Ref, frame, Bin}, State, W = #worker{stream = Ref}) when byte_size(Bin) =< ?MAX_FRAME_BYTES ->
    case framework_adapter_frame:decode(Bin) of
        {ok, Frame} -> counted(Frame, byte_size(Bin), State, W#worker{heard_at = now_ms()});
        {error, Why} -> protocol_error(io_lib:format("bad frame header: ~0p", [Why]), State, W)
    end;
handle_event(info, {agent_native, Ref, frame, _}, State, W = #worker{stream = Ref}) ->
    protocol_error("a frame over 16 MiB", State, W);
handle_event(info, {agent_native, Ref, passive, _}, _, #worker{stream = Ref, remote = Remote}) when Remote =/= none ->
    framework_adapter_remote:want(Remote),
    keep_state_and_data;
handle_event(info, {agent_native, Ref, closed, _}, State, W = #worker{stream = Ref}) ->
    stream_closed(State, W#worker{remote = none});
handle_event(info, {tcp_error, S, emsgsize}, State, W = #worker{socket = S}) ->
    protocol_error("a frame over 16 MiB", State, W);
handle_event(info, {tcp_error, S, _}, _, #worker{socket = S}) ->
    keep_state_and_data;
handle_event(info, {tcp_closed, S}, State, W = #worker{socket = S}) ->
    channel_closed(State, W#worker{socket = none});

%% the guard
handle_event(info, {Port, {data, Bin}}, State, W = #worker{port = Port}) ->
    control(port_guard:decode(Bin), State, W);
handle_event(info, {Port, {exit_status, Status}}, State, W = #worker{port = Port}) ->
    guard_ended(Status, State, W);
handle_event(info, {'EXIT', Port, _}, _, #worker{port = Port}) ->
    keep_state_and_data;
handle_event(info, {'EXIT', _, shutdown}, _, W) ->
    {stop, shutdown, W};
handle_event(info, {'EXIT', _, _}, _, _) ->
    keep_state_and_data;

%% answers of the native side
handle_event(info, {agent_native, Ref, Event, Props}, _, W = #worker{leases = Leases}) ->
    {keep_state, answered(Ref, Event, Props, maps:values(Leases), W)};

%% the owners
handle_event(cast, {lease, Ref, Owner}, ready, W = #worker{leases = Leases, retiring = false, spec = #{id := Id, manager := Manager}}) ->
    Manager ! {worker, Id, {leased, Ref}},
    Lease = framework_adapter_lease:new(Ref, Owner, free_slot(maps:values(Leases))),
    framework_adapter_lease:tell({leased, self(), lease_info(W)}, Lease),
    {keep_state, put_lease(Lease, W)};
handle_event(cast, {lease, Ref, _}, ready, #worker{spec = #{id := Id, manager := Manager}}) ->
    Manager ! {worker, Id, {declined, Ref}},
    keep_state_and_data;
handle_event(cast, {execute, Ref, Task}, ready, W = #worker{leases = Leases}) when is_map_key(Ref, Leases) ->
    execute_task(Task, maps:get(Ref, Leases), W);
handle_event(cast, {give_back, Ref}, ready, W = #worker{leases = Leases}) when is_map_key(Ref, Leases) ->
    release(maps:get(Ref, Leases), W);
handle_event(cast, {delegated, Ref, Call, Answer}, ready, W = #worker{leases = Leases}) when is_map_key(Ref, Leases) ->
    Lease = maps:get(Ref, Leases),
    Calls = framework_adapter_calls:delegated(Call, Answer, framework_adapter_lease:calls(Lease)),
    {keep_state, send_waiting(put_lease(framework_adapter_lease:set_calls(Calls, Lease), W))};
handle_event(cast, {cancel, Ref, GraceMs}, State, W = #worker{leases = Leases}) when is_map_key(Ref, Leases) ->
    cancel_task(GraceMs, State, maps:get(Ref, Leases), W);
handle_event(cast, {kill, Ref}, State, W = #worker{leases = Leases}) when is_map_key(Ref, Leases) ->
    Lease = framework_adapter_lease:killed(maps:get(Ref, Leases)),
    TermMs = case framework_adapter_lease:is_now(Lease) of true -> 0; false -> ?TERM_GRACE_MS end,
    kill_tree(cancelled, TermMs, State, put_lease(Lease, W));
handle_event({timeout, {grace, Ref}}, grace, ready, #worker{leases = Leases}) when is_map_key(Ref, Leases) ->
    framework_adapter_lease:tell(grace_over, maps:get(Ref, Leases)),
    keep_state_and_data;
handle_event(info, {'DOWN', Mon, process, _, _}, State, W = #worker{leases = Leases}) ->
    case [L || L <- maps:values(Leases), framework_adapter_lease:monitor_of(L) =:= Mon] of
        [Lease] -> owner_down(framework_adapter_lease:is_running(Lease), State, Lease, W);
        [] -> keep_state_and_data
    end;
handle_event(cast, stop, ready, W = #worker{leases = Leases}) when map_size(Leases) =:= 0 ->
    _ = send(framework_adapter_frame:encode(goodbye, <<>>), W),
    kill_tree(stopped, ?TERM_GRACE_MS, ready, W);
handle_event(cast, retire, ready, W) ->
    unoccupied(retiring(W));
handle_event(cast, {bind, Spec}, offered, W = #worker{spec = Offered}) ->
    initialise(W#worker{spec = maps:merge(Offered, Spec)});
%% The lease that these name has ended.
handle_event(cast, {cancel, _, _}, _, _) ->
    keep_state_and_data;
handle_event(cast, {kill, _}, _, _) ->
    keep_state_and_data;

%% clocks
handle_event({timeout, events}, events, _, W = #worker{pace = Pace}) ->
    {Sizes, Pace1} = framework_adapter_pace:turn(Pace),
    paced({keep_state, lists:foldl(fun consume/2, W#worker{pace = Pace1}, Sizes)});
handle_event({timeout, tick}, tick, State, W) ->
    tick(State, W);
handle_event(state_timeout, proof, killing, W) ->
    gone(unproved(W), W);
handle_event(state_timeout, report, _, W) ->
    lose(worker_crashed, <<"the channel ended and the guard did not report">>, killing, W);
handle_event(_, _, _, _) ->
    keep_state_and_data.

%% ---- opening

-spec open(#worker{}) -> {ok, #worker{}} | {error, binary(), #worker{}}.
open(W = #worker{spec = #{id := Id, agent := Agent, environment := Environment}, dir = Dir}) ->
    case framework_adapter_opening:open(Id, Agent, Environment, Dir) of
        {ok, Opened} -> {ok, opened(Opened, W)};
        {error, Detail, Opened} -> {error, Detail, opened(Opened, W)}
    end.

-spec opened(framework_adapter_opening:opened(), #worker{}) -> #worker{}.
opened(#{port := Port, guard_pid := GuardPid, socket := Socket}, W) ->
    W#worker{port = Port, guard_pid = GuardPid, socket = Socket}.

%% ---- frames

-spec counted(framework_adapter_frame:frame(), pos_integer(), atom(), #worker{}) ->
    gen_statem:event_handler_result(atom()).
counted(#{type := Type} = Frame, Size, State, W = #worker{in = In}) ->
    case framework_adapter_frame:counted(Type) of
        false ->
            frame(Type, Frame, State, W);
        true ->
            case framework_adapter_credit:received(Size, In) of
                overdrawn ->
                    protocol_error("frames without credit", State, W);
                {ok, In1} ->
                    paced(frame(Type, Frame, State, acknowledge(is_shown(Frame), Size, W#worker{in = In1})))
            end
    end.

%% Frames that become events of the task; those of tools are calls.
-spec is_shown(framework_adapter_frame:frame()) -> boolean().
is_shown(#{type := event}) ->
    true;
is_shown(#{type := call, kind := Kind}) ->
    lists:member(framework_adapter_frame:call_kind(Kind), [tool, tool_begin, tool_end]);
is_shown(_) ->
    false.

-spec acknowledge(Shown :: boolean(), pos_integer(), #worker{}) -> #worker{}.
acknowledge(true, Size, W = #worker{pace = Pace}) ->
    case framework_adapter_pace:event(Size, Pace) of
        {now, Pace1} -> consume(Size, W#worker{pace = Pace1});
        {later, Pace1} -> W#worker{pace = Pace1}
    end;
acknowledge(false, Size, W) ->
    consume(Size, W).

-spec consume(pos_integer(), #worker{}) -> #worker{}.
consume(Size, W = #worker{in = In}) ->
    {In1, Grant} = framework_adapter_credit:consumed(Size, In),
    grant(Grant, W#worker{in = In1}).

-spec paced(gen_statem:event_handler_result(atom())) -> gen_statem:event_handler_result(atom()).
paced({keep_state, W = #worker{pace = Pace}} = Result) ->
    case framework_adapter_pace:clock(Pace) of
        {start, Ms, Pace1} -> {keep_state, W#worker{pace = Pace1}, [{{timeout, events}, Ms, events}]};
        none -> Result
    end;
paced(Result) ->
    Result.

-spec frame(framework_adapter_frame:type(), framework_adapter_frame:frame(), atom(), #worker{}) ->
    gen_statem:event_handler_result(atom()).
frame(heartbeat, #{payload := P}, State, W = #worker{live = Live}) when Live =/= none ->
    case framework_adapter_frame:heartbeat(P) of
        {ok, #{loop_beat := Beat, rss_bytes := Rss}} ->
            {keep_state, W#worker{live = framework_adapter_liveness:beat(now_ms(), Beat, Live), rss = Rss}};
        error ->
            protocol_error("malformed heartbeat", State, W)
    end;
frame(heartbeat, _, _, _) ->
    keep_state_and_data;
frame(credit, #{call_id := Frames, fence := Bytes}, State, W = #worker{out = Out}) ->
    case framework_adapter_credit:give(Frames, Bytes, Out) of
        {ok, Out1} -> {keep_state, send_waiting(W#worker{out = Out1})};
        error -> protocol_error("more credit granted than was used", State, W)
    end;
frame(hello, #{payload := P}, offered, W = #worker{hello = Hello}) when map_size(Hello) =:= 0 ->
    offered(agent_native:wire_decode(hello, P), W);
frame(control, #{payload := <<>>}, _, W = #worker{stream = Ref}) when Ref =/= none ->
    %% The other side asks whether the line is still one.
    {keep_state, send(framework_adapter_frame:encode(control, <<>>), W)};
frame(control, #{payload := P}, State, W = #worker{stream = Ref}) when Ref =/= none ->
    remote_control(port_guard:decode(P), State, W);
frame(hello, #{payload := P}, hello, W) ->
    hello(agent_native:wire_decode(hello, P), W);
frame(ready, #{payload := P, flags := Flags}, binding, W) ->
    case lists:member(error, Flags) of
        true -> refused(P, W);
        false -> bound(P, W)
    end;
frame(event, #{kind := Kind, payload := P} = Frame, _, W) ->
    _ = [framework_adapter_lease:tell(case Kind of
                                          1 -> {event, {text, P}};
                                          ?BEAT -> beat;
                                          _ -> {event, {worker_event, Kind, P}}
                                      end, Lease) || {ok, Lease} <- [leased(Frame, W)]],
    {keep_state, W};
frame(call, Frame, ready, W = #worker{spec = Spec}) ->
    case leased(Frame, W) of
        {ok, Lease} -> {keep_state, send_waiting(put_lease(framework_adapter_lease:call(Frame, Spec, self(), Lease), W))};
        error -> {keep_state, W}
    end;
frame(result, Frame, ready, W) ->
    case leased(Frame, W) of
        {ok, Lease} -> result(Frame, Lease, W);
        error -> {keep_state, W}
    end;
frame(goodbye, _, draining, W) ->
    kill_tree(recycled, ?TERM_GRACE_MS, draining, W);
frame(Type, _, _, W) when Type =:= call; Type =:= result; Type =:= goodbye; Type =:= health_reply ->
    %% Late frames of an attempt that has ended or was fenced: dropped, their credit is given back all the same.
    {keep_state, W};
frame(Type, _, State, W) ->
    protocol_error(io_lib:format("unexpected ~s in state ~s", [Type, State]), State, W).

%% A worker of another machine is there; which agent it will be of is the manager's to say.
-spec offered({ok, map()} | {error, map()}, #worker{}) -> gen_statem:event_handler_result(atom()).
offered({ok, #{framework := Env} = Hello}, W = #worker{spec = #{id := Id, manager := Manager}}) when Env =/= <<>> ->
    W1 = W#worker{hello = Hello},
    Manager ! {offer, Id, self(), Env, view(W1)},
    {keep_state, W1, [{state_timeout, infinity, start}]};
offered(_, W) ->
    protocol_error("HELLO names no framework", offered, W).

%% What the guard of a worker of another machine says. Its lines are counted like events: here no guard of ours caps them.
-spec remote_control(port_guard:message(), atom(), #worker{}) -> gen_statem:event_handler_result(atom()).
remote_control({log, _, _} = Line, State, W = #worker{pace = Pace}) ->
    case framework_adapter_pace:line(Pace) of
        {taken, Pace1} -> paced(control(Line, State, W#worker{pace = Pace1}));
        dropped -> {keep_state, W}
    end;
remote_control(Message, State, W) ->
    control(Message, State, W).

-spec hello({ok, map()} | {error, map()}, #worker{}) -> gen_statem:event_handler_result(atom()).
hello({ok, #{worker_id := Id}}, W = #worker{spec = #{id := Id}}) ->
    initialise(W);
hello(_, W) ->
    protocol_error("HELLO names another worker", hello, W).

-spec initialise(#worker{}) -> gen_statem:event_handler_result(atom()).
initialise(W = #worker{spec = #{agent := Agent, framework := Framework, tenant := Tenant}, dir = Dir}) ->
    Init = framework_adapter_payloads:init(Framework, Agent, Tenant, Dir),
    W1 = send(framework_adapter_frame:encode(init, Init), W),
    {next_state, binding, W1, [{state_timeout, ?START_TIMEOUT_MS, start}]}.

-spec bound(binary(), #worker{}) -> gen_statem:event_handler_result(atom()).
bound(P, W = #worker{spec = #{id := Id, manager := Manager}}) ->
    Ready = case agent_native:wire_decode(ready, P) of {ok, R} -> R; {error, _} -> #{} end,
    %% Read once here: a lease must not touch the file system.
    Hash = case W#worker.stream of
               none -> framework_adapter_lock:stamp(maps:get(environment, W#worker.spec));
               _ -> maps:get(lock_hash, W#worker.hello, <<>>)
           end,
    W1 = W#worker{ready = Ready#{env_lock_hash => Hash}, live = framework_adapter_liveness:new(now_ms())},
    Manager ! {worker, Id, {ready, view(W1)}},
    {next_state, ready, W1, [{{timeout, tick}, ?TICK_MS, tick}]}.

%% The user's code could not be loaded: the same would happen again, so the manager is told the worker's own words.
-spec refused(binary(), #worker{}) -> gen_statem:event_handler_result(atom()).
refused(P, W) ->
    Error = case agent_native:wire_decode(error, P) of
                {ok, E} -> maps:get(message, E, <<>>);
                {error, _} -> <<"the agent could not be loaded">>
            end,
    lose(worker_start_failed, Error, binding, W).

%% ---- tasks

-spec put_lease(framework_adapter_lease:lease(), #worker{}) -> #worker{}.
put_lease(Lease, W = #worker{leases = Leases}) ->
    W#worker{leases = Leases#{framework_adapter_lease:ref(Lease) => Lease}}.

%% The lowest one that nobody has.
-spec free_slot([framework_adapter_lease:lease()]) -> non_neg_integer().
free_slot(Leases) ->
    Taken = [framework_adapter_lease:slot(L) || L <- Leases],
    hd([N || N <- lists:seq(0, length(Taken)), not lists:member(N, Taken)]).

%% Whose frame it is; late ones of an attempt that has ended or was fenced are nobody's, their credit is given back all the same.
-spec leased(framework_adapter_frame:frame(), #worker{}) -> {ok, framework_adapter_lease:lease()} | error.
leased(#{slot := Slot, fence := Fence}, #worker{leases = Leases}) ->
    case [L || L <- maps:values(Leases), framework_adapter_lease:is_running(L), framework_adapter_lease:slot(L) =:= Slot,
               framework_adapter_lease:fence(L) =:= Fence] of
        [Lease] -> {ok, Lease};
        [] -> error
    end.

-spec answered(reference(), atom(), term(), [framework_adapter_lease:lease()], #worker{}) -> #worker{}.
answered(_, _, _, [], W) ->
    W;
answered(Ref, Event, Props, [Lease | Others], W) ->
    case framework_adapter_calls:native(Ref, Event, Props, framework_adapter_lease:calls(Lease)) of
        unknown ->
            answered(Ref, Event, Props, Others, W);
        {Notes, Calls} ->
            ok = framework_adapter_lease:note({Notes, self()}, Lease),
            send_waiting(put_lease(framework_adapter_lease:set_calls(Calls, Lease), W))
    end.

-spec execute_task(map(), framework_adapter_lease:lease(), #worker{}) -> gen_statem:event_handler_result(atom()).
execute_task(#{payload := Payload, fence := Fence} = Task, Lease0, W0) ->
    #worker{spec = #{agent := Agent, id := Id, manager := Manager, recycle_after := Max} = Spec} = W = at_work(W0),
    Flags = [want_text || maps:get(stream_text, Task, true)],
    Execute = framework_adapter_payloads:execute(Task, Agent),
    Frame = framework_adapter_frame:encode(execute, 0, Flags, {framework_adapter_lease:slot(Lease0), 0}, Fence, Execute),
    Lease1 = framework_adapter_lease:started(Task, Payload, maps:get(block_grace_ms, Spec), Lease0),
    Calls = framework_adapter_calls:add(Frame, framework_adapter_lease:calls(Lease1)),
    W1 = send_waiting(put_lease(framework_adapter_lease:set_calls(Calls, Lease1), W#worker{tasks = W#worker.tasks + 1})),
    Manager ! {worker, Id, {busy, view(W1)}},
    {keep_state, case W1#worker.tasks >= Max of true -> retiring(W1); false -> W1 end}.

%% The clocks and the log of one that had nothing to do begin anew.
-spec at_work(#worker{}) -> #worker{}.
at_work(W = #worker{leases = Leases}) ->
    case lists:any(fun framework_adapter_lease:is_running/1, maps:values(Leases)) of
        true -> W;
        false -> W#worker{log = [], live = framework_adapter_liveness:new(now_ms())}
    end.

-spec result(framework_adapter_frame:frame(), framework_adapter_lease:lease(), #worker{}) -> gen_statem:event_handler_result(atom()).
result(#{kind := Kind, payload := P}, Lease, W) ->
    case {result_kind(Kind), agent_native:wire_decode(result, P)} of
        {Status, {ok, Props}} when Status =/= unknown ->
            framework_adapter_lease:tell({result, Status, result_props(Props, W)}, Lease),
            release(Lease, W);
        _ ->
            protocol_error("malformed RESULT", ready, W)
    end.

-spec result_props(map(), #worker{}) -> map().
result_props(Props, #worker{rss = 0}) -> Props;
result_props(Props, #worker{rss = Rss}) -> Props#{rss_bytes => Rss}.

-spec result_kind(byte()) -> framework_adapter_frame:result_kind() | unknown.
result_kind(1) -> succeeded;
result_kind(2) -> failed;
result_kind(3) -> cancelled;
result_kind(4) -> input_requested;
result_kind(_) -> unknown.

%% A slot goes back to the pool; the last one of a worker that has run enough is its end.
-spec release(framework_adapter_lease:lease(), #worker{}) -> gen_statem:event_handler_result(atom()).
release(Lease, W = #worker{leases = Leases, spec = #{id := Id, manager := Manager}}) ->
    Ref = framework_adapter_lease:ref(Lease),
    ok = framework_adapter_lease:ended(Lease),
    W1 = W#worker{leases = maps:remove(Ref, Leases)},
    W2 = case aged(W1) of true -> retiring(W1); false -> W1 end,
    Manager ! {worker, Id, {released, Ref, view(W2)}},
    with(unoccupied(W2), {{timeout, {grace, Ref}}, infinity, grace}).

-spec unoccupied(#worker{}) -> gen_statem:event_handler_result(atom()).
unoccupied(W = #worker{retiring = true, leases = Leases}) when map_size(Leases) =:= 0 ->
    %% It writes out what it holds and says GOODBYE.
    {next_state, draining, send(framework_adapter_frame:encode(drain, <<>>), W), [{state_timeout, ?DRAIN_TIMEOUT_MS, drain}]};
unoccupied(W) ->
    {keep_state, W}.

-spec with(gen_statem:event_handler_result(atom()), gen_statem:action()) -> gen_statem:event_handler_result(atom()).
with({keep_state, W}, Action) -> {keep_state, W, [Action]};
with({next_state, State, W, Actions}, Action) -> {next_state, State, W, [Action | Actions]}.

-spec retiring(#worker{}) -> #worker{}.
retiring(W = #worker{retiring = true}) ->
    W;
retiring(W = #worker{spec = #{id := Id, manager := Manager}}) ->
    Manager ! {worker, Id, retiring},
    W#worker{retiring = true}.

-spec aged(#worker{}) -> boolean().
aged(#worker{stream = none}) -> false;
aged(#worker{started_ms = Started}) -> erlang:system_time(millisecond) - Started > ?REMOTE_AGE_MS.

%% ---- cancel and kill

-spec cancel_task(non_neg_integer(), atom(), framework_adapter_lease:lease(), #worker{}) -> gen_statem:event_handler_result(atom()).
cancel_task(GraceMs, State, Lease, W = #worker{leases = Leases}) ->
    Closed = framework_adapter_lease:close(case GraceMs of 0 -> framework_adapter_lease:now(Lease); _ -> Lease end),
    Grace = case map_size(Leases) of 1 -> GraceMs; _ -> max(GraceMs, ?SHARED_GRACE_MS) end,
    case State =:= ready andalso framework_adapter_lease:is_running(Lease) of
        true when Grace > 0 ->
            Slot = framework_adapter_lease:slot(Lease),
            Frame = framework_adapter_frame:encode(cancel, 0, [], {Slot, Grace}, framework_adapter_lease:fence(Lease), <<>>),
            %% Behind its EXECUTE, which may wait for credit.
            Calls = framework_adapter_calls:cancel(Frame, framework_adapter_lease:calls(Closed)),
            W1 = send_waiting(put_lease(framework_adapter_lease:set_calls(Calls, Closed), W)),
            {keep_state, W1, [{{timeout, {grace, framework_adapter_lease:ref(Lease)}}, Grace, grace}]};
        true ->
            framework_adapter_lease:tell(grace_over, Lease),
            {keep_state, send_waiting(put_lease(Closed, W))};
        false ->
            framework_adapter_lease:tell(grace_over, Lease),
            keep_state_and_data
    end.

%% The task of an owner that is no more cannot go on: it may be running elsewhere soon.
-spec owner_down(Running :: boolean(), atom(), framework_adapter_lease:lease(), #worker{}) -> gen_statem:event_handler_result(atom()).
owner_down(true, ready, _, W) -> kill_tree(owner_down, 0, ready, W);
owner_down(false, ready, Lease, W) -> release(Lease, W);
owner_down(_, _, _, _) -> keep_state_and_data.

-spec kill_tree(term(), non_neg_integer(), atom(), #worker{}) -> gen_statem:event_handler_result(atom()).
kill_tree(_, _, killing, W) ->
    {keep_state, W};
kill_tree(Why, GraceMs, State, W = #worker{spec = #{id := Id, manager := Manager}}) ->
    forget(W),
    Forgotten = maps:map(fun(_, L) -> framework_adapter_lease:set_calls(framework_adapter_calls:new(), L) end, W#worker.leases),
    Manager ! {worker, Id, {killing, Why}},
    Now = erlang:system_time(millisecond),
    Signals = [#{name => <<"TERM">>, at_ms => Now} || GraceMs > 0]
        ++ [#{name => <<"KILL">>, at_ms => Now + GraceMs}],
    W1 = W#worker{leases = Forgotten, killing = #{why => Why, at_us => erlang:monotonic_time(microsecond), signals => Signals}},
    Gone = State =:= opening orelse guard_kill(GraceMs, W) =:= gone,
    case {Gone, framework_adapter_report:proof(W#worker.report)} of
        {_, {ok, Proof}} -> gone(Proof, W1);
        {true, error} -> gone(unproved(W1), W1);
        {false, error} -> {next_state, killing, W1, [{state_timeout, ?PROOF_TIMEOUT_MS, proof}]}
    end.

%% No answer of the native side is wanted any more.
-spec forget(#worker{}) -> ok.
forget(#worker{leases = Leases}) ->
    lists:foreach(fun(L) -> framework_adapter_calls:forget(framework_adapter_lease:calls(L)) end, maps:values(Leases)).

-spec guard_kill(non_neg_integer(), #worker{}) -> ok | gone.
guard_kill(_, #worker{port = none, remote = none}) -> gone;
guard_kill(GraceMs, #worker{port = none, remote = Remote}) -> framework_adapter_remote:kill(Remote, GraceMs);
guard_kill(GraceMs, #worker{port = Port}) -> port_guard:kill(Port, GraceMs).

%% The end: the proof goes to whoever asked for it, a loss to the others and the manager, and the process stops.
-spec gone(map(), #worker{}) -> gen_statem:event_handler_result(atom()).
gone(#{proof := Proof, survivors := Survivors},
     W = #worker{killing = #{why := Why, at_us := At, signals := Signals}, host_pid = HostPid, leases = Leases}) ->
    Asked = #{witness => Proof, host_pid => HostPid, signals => Signals, confirmed_dead => Proof =/= unconfirmed,
              survivors => Survivors, duration_us => erlang:monotonic_time(microsecond) - At},
    maps:foreach(fun(_, Lease) ->
                     case Why =:= cancelled andalso framework_adapter_lease:is_killed(Lease) of
                         true -> framework_adapter_lease:tell({gone, Asked}, Lease);
                         false -> framework_adapter_lease:tell({lost, maps:merge(lost(Why, Proof, W), fault(Why, Leases))}, Lease)
                     end
                 end, Leases),
    {stop, {shutdown, ended(Why)}, W#worker{leases = #{}}}.

%% Where the process was ended because of one of its tasks the others are innocent; else it may have been any of them.
-spec fault(term(), map()) -> map().
fault(Why, Leases) when Why =:= cancelled, map_size(Leases) > 1 -> #{innocent => true};
fault(_, Leases) -> #{beside => map_size(Leases) - 1}.

-spec lost(term(), port_guard:proof(), #worker{}) -> map().
lost({_, _} = Why, Proof, #worker{report = Report, log = Log, host_pid = HostPid}) ->
    framework_adapter_report:lost(Why, Proof, HostPid, Log, Report);
lost(cancelled, Proof, W) ->
    lost({worker_crashed, <<"another task of it did not end when it was cancelled">>}, Proof, W);
lost(Why, Proof, W) ->
    lost({worker_crashed, atom_to_binary(Why)}, Proof, W).

-spec ended(term()) -> term().
ended({Cause, Detail}) -> {Cause, iolist_to_binary(Detail)};
ended(Why) -> Why.

%% The worker is lost: what is left of its tree is killed, then the owner hears why.
-spec lose(atom(), iodata(), atom(), #worker{}) -> gen_statem:event_handler_result(atom()).
lose(Cause, Detail, State, W = #worker{spec = #{id := Id}, host_pid = HostPid}) ->
    ?LOG_WARNING(#{msg => worker_lost, worker => Id, host_pid => HostPid, cause => Cause,
                   detail => iolist_to_binary(Detail)}, #{domain => [agent, adapters]}),
    case State of
        killing -> gone(proof(W), killing_for({Cause, Detail}, W));
        _ -> kill_tree({Cause, Detail}, 0, State, W)
    end.

-spec killing_for(term(), #worker{}) -> #worker{}.
killing_for(Why, W = #worker{killing = none}) ->
    W#worker{killing = #{why => Why, at_us => erlang:monotonic_time(microsecond), signals => []}};
killing_for(_, W) ->
    W.

-spec protocol_error(iodata(), atom(), #worker{}) -> gen_statem:event_handler_result(atom()).
protocol_error(Detail, killing, W) ->
    _ = Detail,
    {keep_state, W};
protocol_error(Detail, State, W) ->
    lose(worker_protocol_error, Detail, State, W).

%% The data channel ended: the guard knows more; its report is waited for.
-spec channel_closed(atom(), #worker{}) -> gen_statem:event_handler_result(atom()).
channel_closed(killing, W) ->
    {keep_state, W};
channel_closed(_, W = #worker{report = Report}) ->
    case framework_adapter_report:proof(Report) of
        {ok, _} -> lose(cause(W), detail(W), killing, W);
        error -> {next_state, killing, killing_for({cause(W), detail(W)}, W), [{state_timeout, ?REPORT_TIMEOUT_MS, report}]}
    end.

%% The stream of a worker of another machine ended: its guard takes it down, but nobody here hears of it.
-spec stream_closed(atom(), #worker{}) -> gen_statem:event_handler_result(atom()).
stream_closed(killing, W) ->
    gone(proof(W), W);
stream_closed(offered, W) ->
    {stop, {shutdown, stopped}, W};
stream_closed(State, W) ->
    lose(cause(W), <<"the connection to the worker's machine was cut">>, State, W).

-spec control(port_guard:message(), atom(), #worker{}) -> gen_statem:event_handler_result(atom()).
control({up, #{host_pid := HostPid, layers := Layers}} = Message, _, W) ->
    {keep_state, reported(Message, W#worker{host_pid = HostPid, layers = Layers})};
control({log, Stream, Line}, _, W = #worker{log = Log}) ->
    Level = case Stream of stderr -> <<"warning">>; stdout -> <<"info">> end,
    _ = case concurrency(W) of
            %% Where tasks run side by side the pipe does not say whose line it is, and the worker sends its tasks' lines as events.
            1 -> tell_all({event, {log, #{level => Level, source => <<"worker">>, message => Line}}}, W);
            _ -> ok
        end,
    {keep_state, W#worker{log = lists:sublist([Line | Log], ?LOG_LINES)}};
control({stack, Text} = Message, _, W) ->
    tell_all({event, {log, #{level => <<"warning">>, source => <<"stack">>, message => Text}}}, W),
    {keep_state, reported(Message, W)};
control({limit, _, _, _} = Message, killing, W) ->
    {keep_state, reported(Message, W)};
control({limit, _, _, _} = Message, _, W) ->
    W1 = reported(Message, W),
    {next_state, killing, killing_for({cause(W1), port_guard:cause(Message)}, W1), [{state_timeout, ?PROOF_TIMEOUT_MS, proof}]};
control({exited, _} = Message, killing, W) ->
    {keep_state, reason_from(Message, reported(Message, W))};
control({exited, _} = Message, _, W) ->
    W1 = killing_for({worker_crashed, port_guard:cause(Message)}, reported(Message, W)),
    {next_state, killing, W1, [{state_timeout, ?PROOF_TIMEOUT_MS, proof}]};
control({gone, Gone}, killing, W) ->
    gone(Gone, W);
control({gone, _} = Message, _, W) ->
    lose(cause(W), detail(W), killing, reported(Message, W));
control({failed, _} = Message, State, W) ->
    lose(worker_start_failed, port_guard:cause(Message),
         case State of killing -> killing; _ -> opening end, W);
control(_, _, W) ->
    {keep_state, W}.

%% The channel may end before the guard's report: the report then names the cause.
-spec reason_from(port_guard:message(), #worker{}) -> #worker{}.
reason_from(Message, W = #worker{killing = #{why := {worker_crashed, _}} = K}) ->
    W#worker{killing = K#{why => {worker_crashed, port_guard:cause(Message)}}};
reason_from(_, W) ->
    W.

-spec guard_ended(non_neg_integer(), atom(), #worker{}) -> gen_statem:event_handler_result(atom()).
guard_ended(Status, State, W0) ->
    W = W0#worker{port = none},
    Detail = io_lib:format("the guard ended with status ~b", [Status]),
    case State of
        killing -> gone(proof(W), W);
        _ when Status =:= 125 -> lose(worker_start_failed, <<"the zygote is not there">>, State, W);
        _ -> lose(worker_crashed, Detail, State, W)
    end.

-spec reported(port_guard:message(), #worker{}) -> #worker{}.
reported(Message, W = #worker{report = Report}) ->
    W#worker{report = framework_adapter_report:add(Message, Report)}.

-spec cause(#worker{}) -> atom().
cause(#worker{report = Report}) -> framework_adapter_report:cause(Report).

-spec detail(#worker{}) -> binary().
detail(#worker{report = Report}) -> framework_adapter_report:detail(Report).

%% What is known of the death of everything.
-spec proof(#worker{}) -> map().
proof(W = #worker{report = Report}) ->
    case framework_adapter_report:proof(Report) of
        {ok, Proof} -> Proof;
        error -> unproved(W)
    end.

-spec unproved(#worker{}) -> map().
unproved(W) ->
    #{proof => unconfirmed, survivors => survivors(W)}.

%% Host pids that still exist after a kill without proof: honest, not complete.
-spec survivors(#worker{}) -> [pos_integer()].
survivors(#worker{host_pid = 0}) -> [];
survivors(#worker{stream = Ref}) when Ref =/= none -> [];
survivors(#worker{host_pid = Pid}) -> [Pid || not lists:member(framework_adapter_proc:state(Pid), [gone, zombie])].

-spec concurrency(#worker{}) -> pos_integer().
concurrency(#worker{spec = #{framework := Framework, agent := Agent}}) ->
    framework_adapter_env:concurrency(Framework, Agent).

-spec tell_all(term(), #worker{}) -> ok.
tell_all(What, #worker{leases = Leases}) ->
    maps:foreach(fun(_, Lease) -> framework_adapter_lease:tell(What, Lease) end, Leases).

%% ---- clocks

-spec tick(atom(), #worker{}) -> gen_statem:event_handler_result(atom()).
tick(State, W = #worker{live = Live, spec = Spec, leases = Leases}) when State =:= ready ->
    %% The most patient of the tasks: which one of them blocks is not known.
    Graces = [framework_adapter_lease:block_grace_ms(L) || L <- maps:values(Leases), framework_adapter_lease:is_running(L)],
    Grace = case Graces of [] -> maps:get(block_grace_ms, Spec); _ -> lists:max(Graces) end,
    Limits = #{tick_ms => ?TICK_MS, block_grace_ms => Grace},
    {Verdict, Live1} = framework_adapter_liveness:tick(now_ms(), fun() -> process_state(W) end, Limits, Live),
    W1 = W#worker{live = Live1},
    Again = {{timeout, tick}, ?TICK_MS, tick},
    case Verdict of
        ok ->
            {keep_state, W1, [Again]};
        dump_stack ->
            _ = case W of
                    #worker{remote = none, port = Port} -> port_guard:signal(Port, ?SIGUSR1);
                    #worker{remote = Remote} -> framework_adapter_remote:signal(Remote, ?SIGUSR1)
                end,
            {keep_state, W1, [Again]};
        {replace, Cause, Detail} ->
            lose(Cause, Detail, State, W1)
    end;
tick(_, _) ->
    keep_state_and_data.

%% Of another machine nothing is known but what comes by the stream.
-spec process_state(#worker{}) -> framework_adapter_liveness:process_state().
process_state(#worker{stream = none, host_pid = HostPid}) -> framework_adapter_proc:state(HostPid);
process_state(#worker{heard_at = At}) ->
    case now_ms() - At > ?REMOTE_SILENCE_MS of
        true -> gone;
        false -> sleeping
    end.

%% ---- sending

-spec grant(none | {pos_integer(), non_neg_integer()}, #worker{}) -> #worker{}.
grant(none, W) ->
    W;
grant({Frames, Bytes}, W) ->
    send(framework_adapter_frame:encode(credit, 0, [], {0, Frames}, Bytes, <<>>), W).

%% Frames that wait for credit, task by task; each time another one is first.
-spec send_waiting(#worker{}) -> #worker{}.
send_waiting(W = #worker{leases = Leases, turn = Turn}) ->
    Refs = maps:keys(Leases),
    {Later, First} = lists:split(Turn rem max(1, length(Refs)), Refs),
    lists:foldl(fun send_waiting/2, W#worker{turn = Turn + 1}, First ++ Later).

-spec send_waiting(reference(), #worker{}) -> #worker{}.
send_waiting(Ref, W = #worker{out = Out, leases = Leases}) ->
    Lease = maps:get(Ref, Leases),
    {Frames, Out1, Calls} = framework_adapter_calls:drain(Out, framework_adapter_lease:calls(Lease)),
    lists:foldl(fun send/2, put_lease(framework_adapter_lease:set_calls(Calls, Lease), W#worker{out = Out1}), Frames).

%% A worker that does not read for a second loses its channel (`send_timeout_close'), and `tcp_closed' ends it.
-spec send(iodata(), #worker{}) -> #worker{}.
send(Frame, W = #worker{remote = Remote, stream = Ref}) when Remote =/= none ->
    case framework_adapter_remote:send(Frame, Remote) of
        ok ->
            W;
        gone ->
            self() ! {agent_native, Ref, closed, undefined},
            W
    end;
send(_, W = #worker{socket = none}) ->
    W;
send(Frame, W = #worker{socket = S}) ->
    case gen_tcp:send(S, Frame) of
        ok ->
            W;
        {error, _} ->
            self() ! {tcp_closed, S},
            W
    end.

-spec lease_info(#worker{}) -> map().
lease_info(#worker{spec = #{id := Id}, host_pid = HostPid, ready = Ready}) ->
    #{worker => Id, host_pid => HostPid, env_lock_hash => maps:get(env_lock_hash, Ready, <<>>),
      unjournaled_tools => maps:get(unjournaled_tools, Ready, [])}.

-spec view(#worker{}) -> map().
view(#worker{host_pid = HostPid, rss = Rss, tasks = Tasks, layers = Layers, started_ms = Started, hello = Hello, leases = Leases}) ->
    Running = [framework_adapter_lease:task_id(L) || L <- maps:values(Leases), framework_adapter_lease:is_running(L)],
    #{state => case Running of [] -> idle; _ -> busy end, task_ids => Running, task_id => hd(Running ++ [<<>>]),
      host_pid => HostPid, rss_bytes => Rss, tasks => Tasks, isolation => Layers, started_ms => Started,
      host => maps:get(worker_id, Hello, <<>>)}.

-spec now_ms() -> integer().
now_ms() ->
    erlang:monotonic_time(millisecond).

%% The guard sees the end of its port and takes the tree down; the proof is not waited for when we are shut down.
-spec terminate(term(), atom(), #worker{}) -> ok.
terminate(_Reason, _State, W = #worker{port = Port, remote = Remote, socket = S, dir = Dir, leases = Leases}) ->
    forget(W),
    tell_all({lost, (fault(ended, Leases))#{cause => worker_crashed, detail => <<"the worker's process ended">>}}, W),
    _ = [gen_tcp:close(S) || S =/= none],
    port_guard:close(Port),
    framework_adapter_remote:close(Remote),
    _ = [file:del_dir_r(Dir) || Dir =/= ""],
    ok.

%% Counts instead of contents: frames, logs and agents may hold prompts.
-spec format_status(gen_statem:format_status()) -> gen_statem:format_status().
format_status(Status) ->
    maps:map(fun(data, W = #worker{spec = Spec, log = Log, report = Report}) ->
                     W#worker{spec = maps:with([id, framework, tenant], Spec), ready = #{},
                              leases = #{}, log = [integer_to_binary(length(Log))],
                              report = framework_adapter_report:format(Report)};
                (messages, Messages) -> [{count, length(Messages)}];
                (queue, Queue) -> [{count, length(Queue)}];
                (_, Other) -> Other
             end, Status).
