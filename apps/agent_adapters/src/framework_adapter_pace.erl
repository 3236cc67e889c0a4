%% @doc How fast the events of a worker are acknowledged: so many per slot of time, the rest in later slots. Pure.
%%
%% Without it one task could fill the store's queue. The worker waits for its credit meanwhile; one that does not wait is ended.
-module(framework_adapter_pace).

-export([new/0]).
-export([event/2]).
-export([line/1]).
-export([clock/1]).
-export([turn/1]).

-export_type([pace/0]).

%% Length of a slot, in ms.
-define(SLOT_MS, 50).
%% Events acknowledged in a slot: 2,000 a second.
-define(PER_SLOT, 100).

-record(pace, {left = ?PER_SLOT :: non_neg_integer(), held = [] :: [pos_integer()], runs = false :: boolean()}).
-opaque pace() :: #pace{}.

%% @doc Of a worker that has said nothing.
-spec new() -> pace().
new() ->
    #pace{}.

%% @doc An event of `Size' bytes came: it is acknowledged now, or by a later `turn/1'.
-spec event(pos_integer(), pace()) -> {now | later, pace()}.
event(Size, P = #pace{left = 0, held = Held}) ->
    {later, P#pace{held = [Size | Held]}};
event(_, P = #pace{left = N}) ->
    {now, P#pace{left = N - 1}}.

%% @doc A line of a worker's log that nobody else counts came: it is taken, or dropped where the slot is full.
-spec line(pace()) -> {taken, pace()} | dropped.
line(#pace{left = 0}) -> dropped;
line(P = #pace{left = N}) -> {taken, P#pace{left = N - 1}}.

%% @doc Whether the clock of a slot must be started: it runs only while events come.
-spec clock(pace()) -> {start, Ms :: pos_integer(), pace()} | none.
clock(P = #pace{left = N, runs = false}) when N < ?PER_SLOT -> {start, ?SLOT_MS, P#pace{runs = true}};
clock(_) -> none.

%% @doc A slot is over: the sizes that are acknowledged now count in the next one.
-spec turn(pace()) -> {[pos_integer()], pace()}.
turn(#pace{held = Held}) ->
    {Held, #pace{left = max(0, ?PER_SLOT - length(Held))}}.
