%% @doc Decides from heartbeats whether a worker is well, suspect, or to be replaced. Pure.
%%
%% Two beats travel in one frame: the thread beat says that the interpreter lives, the loop beat that the event loop
%% turns. A clock of ours that itself arrives late (laptop sleep, SIGSTOP of the node) resets everything: silence of the
%% worker during our own sleep proves nothing.
-module(framework_adapter_liveness).

-export([new/1]).
-export([beat/3]).
-export([tick/4]).

-export_type([liveness/0, process_state/0, verdict/0, limits/0]).

%% A beat missing for this long makes a worker suspect.
-define(SUSPECT_MS, 1000).
%% After this long its stacks are asked for.
-define(STACK_MS, 2000).
%% A tick that comes this late means that the node itself was paused.
-define(PAUSE_MS, 1000).

-record(live, {
    frame_at :: integer(),
    loop_at :: integer(),
    loop_beat = 0 :: non_neg_integer(),
    tick_at :: integer(),
    stack_at = none :: none | integer()
}).
-opaque liveness() :: #live{}.
-type process_state() :: running | sleeping | disk | stopped | zombie | gone.
-type limits() :: #{tick_ms := pos_integer(), block_grace_ms := non_neg_integer()}.
-type verdict() :: ok | dump_stack | {replace, worker_hung | worker_crashed, binary()}.

%% @doc Starts the clocks at `Now' (monotonic milliseconds).
-spec new(integer()) -> liveness().
new(Now) ->
    #live{frame_at = Now, loop_at = Now, tick_at = Now}.

%% @doc A HEARTBEAT came with this loop beat number.
-spec beat(integer(), non_neg_integer(), liveness()) -> liveness().
beat(Now, Beat, L = #live{loop_beat = Beat}) ->
    L#live{frame_at = Now};
beat(Now, Beat, L) ->
    L#live{frame_at = Now, loop_at = Now, loop_beat = Beat, stack_at = none}.

%% @doc One look at the clocks. `ProcessState' is asked for (a fun) only when a beat is missing.
-spec tick(integer(), fun(() -> process_state()), limits(), liveness()) -> {verdict(), liveness()}.
tick(Now, _State, #{tick_ms := Tick}, L = #live{tick_at = Last}) when Now - Last > Tick + ?PAUSE_MS ->
    {ok, L#live{frame_at = Now, loop_at = Now, tick_at = Now, stack_at = none}};
tick(Now, State, Limits, L0) ->
    L = L0#live{tick_at = Now},
    Silent = Now - min(L#live.frame_at, L#live.loop_at),
    case Silent >= ?SUSPECT_MS of
        false -> {ok, L#live{stack_at = none}};
        true -> suspect(Now, Silent, State(), Limits, L)
    end.

-spec suspect(integer(), integer(), process_state(), limits(), liveness()) -> {verdict(), liveness()}.
suspect(_Now, _Silent, gone, _, L) ->
    {{replace, worker_crashed, <<"the process is gone">>}, L};
suspect(_Now, _Silent, zombie, _, L) ->
    {{replace, worker_crashed, <<"the process has ended">>}, L};
suspect(_Now, _Silent, stopped, _, L) ->
    {{replace, worker_hung, <<"the process is stopped">>}, L};
%% Uninterruptible sleep is no sign by itself: a process that waits for its pages on a loaded machine is in it most of the time.
suspect(Now, Silent, _, _, L = #live{stack_at = none}) when Silent >= ?STACK_MS ->
    {dump_stack, L#live{stack_at = Now}};
suspect(Now, _, _, #{block_grace_ms := Grace}, L = #live{stack_at = At}) when is_integer(At), Now - At >= Grace ->
    Which = case Now - L#live.frame_at >= ?SUSPECT_MS of
                true -> <<"no heartbeat">>;
                false -> <<"the event loop is blocked">>
            end,
    {{replace, worker_hung, Which}, L};
suspect(_, _, _, _, L) ->
    {ok, L}.
