%% @doc Events of an attempt on their way to the store: batches of at most 50 ms or 4 KiB, the first text at once.
%% The batch is pure; the coordinator keeps the clock.
-module(execution_events).

-export([new/0]).
-export([add/2]).
-export([take/1]).
-export([provider_call/1]).

-export_type([batch/0, event/0]).

%% Text that is not held back longer, in bytes.
-define(MAX_TEXT_BYTES, 4096).
%% Events of a batch.
-define(MAX_EVENTS, 200).

-type event() :: tuple().
-record(batch, {
    events = [] :: [event()],
    text = [] :: iodata(),
    bytes = 0 :: non_neg_integer(),
    count = 0 :: non_neg_integer(),
    any_text = false :: boolean()
}).
-opaque batch() :: #batch{}.

%% @doc Nothing yet.
-spec new() -> batch().
new() ->
    #batch{}.

%% @doc An event; `flush' means now, `later' that a flush within 50 ms is due, `waits' that one is due already.
-spec add(event(), batch()) -> {flush | later | waits, batch()}.
add({text, Text}, B = #batch{text = Held, bytes = Bytes, any_text = Any}) ->
    First = not Any,
    B1 = B#batch{text = [Held, Text], bytes = Bytes + byte_size(Text), any_text = true},
    if First -> {flush, B1};
       B1#batch.bytes >= ?MAX_TEXT_BYTES -> {flush, B1};
       Bytes > 0; B#batch.count > 0 -> {waits, B1};
       true -> {later, B1}
    end;
add(Event, B) ->
    Waits = B#batch.bytes > 0 orelse B#batch.count > 0,
    B1 = #batch{events = Events, count = N} = close_text(B),
    B2 = B1#batch{events = [Event | Events], count = N + 1},
    if N + 1 >= ?MAX_EVENTS -> {flush, B2};
       Waits -> {waits, B2};
       true -> {later, B2}
    end.

%% @doc What is to be sent, in order.
-spec take(batch()) -> {[event()], batch()}.
take(B) ->
    B1 = #batch{events = Events} = close_text(B),
    {lists:reverse(Events), B1#batch{events = [], count = 0}}.

%% @doc The events of a model call that was answered, from the properties of its answer; counts it for its provider unless the journal
%% answered.
-spec provider_call(map()) -> [event()].
provider_call(Props) ->
    Provider = maps:get(provider, Props, <<>>),
    Latency = maps:get(latency_ms, Props, 0),
    Replayed = maps:get(replayed, Props, false),
    _ = Replayed orelse performance_monitor:provider_called(Provider, Latency),
    [{log, #{level => warning, source => <<"journal">>, message => Text}} || {Key, Text} <- doubts(), maps:get(Key, Props, false)]
    ++ [{provider_call, #{provider => Provider, model => maps:get(model, Props, <<>>), usage => maps:get(usage, Props, #{}),
                          latency_ms => Latency, finish_reason => maps:get(finish_reason, Props, other), replayed => Replayed,
                          cache_hit => maps:get(cache_hit, Props, false), hedged => maps:get(hedged, Props, false),
                          resumed => maps:get(resumed, Props, false),
                          cost_micros => maps:get(cost_micros, Props, undefined)}}].

-spec doubts() -> [{in_doubt | diverged, binary()}].
doubts() ->
    [{in_doubt, <<"JOURNAL_IN_DOUBT: an earlier attempt ended during this model call; it was made again and may be billed twice">>},
     {diverged, <<"JOURNAL_DIVERGED: this attempt asked something else than the one before it; it goes on live">>}].

%% Text and other events keep their order.
-spec close_text(batch()) -> batch().
close_text(B = #batch{bytes = 0}) ->
    B#batch{text = []};
close_text(B = #batch{text = Text, events = Events, count = N}) ->
    B#batch{events = [{text, iolist_to_binary(Text)} | Events], count = N + 1, text = [], bytes = 0}.
