%% @doc Header of the data frames between the node and a worker (`docs/port_protocol.md', section 1).
%%
%% Pure. The 4-byte length in front is the socket's `{packet, 4}'; payloads stay opaque.
-module(framework_adapter_frame).

-export([decode/1]).
-export([encode/2]).
-export([encode/6]).
-export([type/1]).
-export([call_kind/1]).
-export([heartbeat/1]).
-export([counted/1]).

-export_type([frame/0, type/0, call_kind/0, result_kind/0, heartbeat/0]).

-define(VERSION, 1).
-define(FLAG_ERROR, 1).
-define(FLAG_STREAM, 2).
-define(FLAG_WANT_TEXT, 4).

-type type() ::
    hello | ready | init | health | health_reply | execute | cancel | event | result | call | reply
    | reply_chunk | credit | heartbeat | drain | goodbye | control.
-type call_kind() ::
    chat | embed | memory | tool | tool_begin | tool_end | delegate | input | select_provider | optimize
    | batch | secret.
-type result_kind() :: succeeded | failed | cancelled | input_requested.
-type frame() :: #{
    type := type(),
    kind := non_neg_integer(),
    flags := [error | stream | want_text],
    slot := non_neg_integer(),
    call_id := non_neg_integer(),
    fence := non_neg_integer(),
    payload := binary()
}.
-type heartbeat() :: #{
    thread_beat := non_neg_integer(),
    loop_beat := non_neg_integer(),
    loop_lag_us := non_neg_integer(),
    in_flight := non_neg_integer(),
    rss_bytes := non_neg_integer()
}.

%% @doc Splits a frame. Errors: `{version, V}', `{type, T}', `short'.
-spec decode(binary()) -> {ok, frame()} | {error, short | {version | type, byte()}}.
decode(<<?VERSION, T, Kind, Flags, Slot:32, CallId:64, Fence:64, Payload/binary>>) ->
    case type(T) of
        unknown ->
            {error, {type, T}};
        Type ->
            {ok, #{
                type => Type,
                kind => Kind,
                flags => flags(Flags),
                slot => Slot,
                call_id => CallId,
                fence => Fence,
                payload => Payload
            }}
    end;
decode(<<V, _:23/binary, _/binary>>) ->
    {error, {version, V}};
decode(_) ->
    {error, short}.

%% @doc A frame without kind, slot, call id, fence.
-spec encode(type(), iodata()) -> iodata().
encode(Type, Payload) ->
    encode(Type, 0, [], {0, 0}, 0, Payload).

%% @doc A whole frame; `{Slot, CallId}' and `Fence' as in the contract.
-spec encode(type(), byte(), [error | stream | want_text], {Slot, CallId}, Fence, iodata()) -> iodata() when
      Slot :: non_neg_integer(), CallId :: non_neg_integer(), Fence :: non_neg_integer().
encode(Type, Kind, Flags, {Slot, CallId}, Fence, Payload) ->
    [<<?VERSION, (number(Type)), Kind, (flag_bits(Flags)), Slot:32, CallId:64, Fence:64>>, Payload].

%% @doc Name of a type number.
-spec type(byte()) -> type() | unknown.
type(1) -> hello;
type(2) -> ready;
type(3) -> init;
type(4) -> health;
type(5) -> health_reply;
type(6) -> execute;
type(7) -> cancel;
type(8) -> event;
type(9) -> result;
type(10) -> call;
type(11) -> reply;
type(12) -> reply_chunk;
type(13) -> credit;
type(14) -> heartbeat;
type(15) -> drain;
type(16) -> goodbye;
type(17) -> control;
type(_) -> unknown.

-spec number(type()) -> byte().
number(hello) -> 1;
number(ready) -> 2;
number(init) -> 3;
number(health) -> 4;
number(health_reply) -> 5;
number(execute) -> 6;
number(cancel) -> 7;
number(event) -> 8;
number(result) -> 9;
number(call) -> 10;
number(reply) -> 11;
number(reply_chunk) -> 12;
number(credit) -> 13;
number(heartbeat) -> 14;
number(drain) -> 15;
number(goodbye) -> 16;
number(control) -> 17.

%% @doc Name of a CALL's kind; an unknown number is answered, not fatal.
-spec call_kind(byte()) -> call_kind() | unknown.
call_kind(1) -> chat;
call_kind(2) -> embed;
call_kind(3) -> memory;
call_kind(4) -> tool;
call_kind(5) -> tool_begin;
call_kind(6) -> tool_end;
call_kind(7) -> delegate;
call_kind(8) -> input;
call_kind(9) -> select_provider;
call_kind(10) -> optimize;
call_kind(11) -> batch;
call_kind(12) -> secret;
call_kind(_) -> unknown.

%% @doc The fixed binary of a HEARTBEAT.
-spec heartbeat(binary()) -> {ok, heartbeat()} | error.
heartbeat(<<Thread:64, Loop:64, Lag:32, InFlight:32, Rss:64>>) ->
    {ok, #{
        thread_beat => Thread,
        loop_beat => Loop,
        loop_lag_us => Lag,
        in_flight => InFlight,
        rss_bytes => Rss
    }};
heartbeat(_) ->
    error.

%% @doc Whether a frame of this type costs credit.
-spec counted(type()) -> boolean().
counted(event) -> true;
counted(call) -> true;
counted(result) -> true;
counted(execute) -> true;
counted(reply) -> true;
counted(reply_chunk) -> true;
counted(_) -> false.

-spec flags(byte()) -> [error | stream | want_text].
flags(0) ->
    [];
flags(Bits) ->
    [Name || {Bit, Name} <- [{?FLAG_ERROR, error}, {?FLAG_STREAM, stream}, {?FLAG_WANT_TEXT, want_text}],
             Bits band Bit =/= 0].

-spec flag_bits([error | stream | want_text]) -> byte().
flag_bits(Flags) ->
    lists:foldl(fun(error, B) -> B bor ?FLAG_ERROR;
                   (stream, B) -> B bor ?FLAG_STREAM;
                   (want_text, B) -> B bor ?FLAG_WANT_TEXT
                end, 0, Flags).
