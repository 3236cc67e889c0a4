%% @doc Credit of one direction of a worker's data channel. Pure.
%%
%% A window is 64 frames and 1 MiB. The receiver grants back at half a window, so less than that may stay unacknowledged for ever: while it
%% is less, a frame of any size may go. Otherwise a sender never has more than a window unacknowledged.
-module(framework_adapter_credit).

-export([new/0]).
-export([take/2]).
-export([give/3]).
-export([received/2]).
-export([consumed/2]).

-export_type([credit/0]).

%% Frames unacknowledged per direction.
-define(WINDOW_FRAMES, 64).
%% Bytes unacknowledged per direction.
-define(WINDOW_BYTES, 1048576).

-record(credit, {frames = 0 :: integer(), bytes = 0 :: integer(), owed_frames = 0 :: integer(), owed_bytes = 0 :: integer()}).
-opaque credit() :: #credit{}.
%% `frames', `bytes': sent (or received) and not acknowledged. `owed_*': consumed and not yet granted back.

%% @doc An empty window.
-spec new() -> credit().
new() ->
    #credit{}.

%% @doc Sender: takes credit for a frame of `Bytes', or `wait'.
-spec take(non_neg_integer(), credit()) -> {ok, credit()} | wait.
take(Bytes, C = #credit{frames = F, bytes = B}) ->
    case (F * 2 < ?WINDOW_FRAMES andalso B * 2 < ?WINDOW_BYTES) orelse (F < ?WINDOW_FRAMES andalso B + Bytes =< ?WINDOW_BYTES) of
        true -> {ok, C#credit{frames = F + 1, bytes = B + Bytes}};
        false -> wait
    end.

%% @doc Sender: the other side acknowledged. More than was sent is an error of the other side.
-spec give(non_neg_integer(), non_neg_integer(), credit()) -> {ok, credit()} | error.
give(Frames, Bytes, C = #credit{frames = F, bytes = B}) when Frames =< F, Bytes =< B ->
    {ok, C#credit{frames = F - Frames, bytes = B - Bytes}};
give(_, _, _) ->
    error.

%% @doc Receiver: a frame came. `overdrawn' means that the sender had no credit for it.
-spec received(non_neg_integer(), credit()) -> {ok, credit()} | overdrawn.
received(Bytes, C) ->
    case take(Bytes, C) of
        wait -> overdrawn;
        Ok -> Ok
    end.

%% @doc Receiver: a frame was dealt with; says what to grant now, if anything.
-spec consumed(non_neg_integer(), credit()) -> {credit(), none | {Frames :: pos_integer(), Bytes :: non_neg_integer()}}.
consumed(Bytes, C = #credit{frames = F, bytes = B, owed_frames = OF, owed_bytes = OB}) ->
    case {OF + 1, OB + Bytes} of
        {Fs, Bs} when Fs * 2 >= ?WINDOW_FRAMES; Bs * 2 >= ?WINDOW_BYTES ->
            {C#credit{frames = F - Fs, bytes = B - Bs, owed_frames = 0, owed_bytes = 0}, {Fs, Bs}};
        {Fs, Bs} ->
            {C#credit{owed_frames = Fs, owed_bytes = Bs}, none}
    end.
