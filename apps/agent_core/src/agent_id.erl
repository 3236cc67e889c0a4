%% @doc Ids of tasks: UUIDv7 text. People see the last eight characters.
-module(agent_id).

-export([short/1]).
-export([is_id/1]).

%% @doc The last eight characters: the first of a UUIDv7 are the same for hours.
-spec short(binary()) -> binary().
short(Id) when byte_size(Id) =< 8 ->
    Id;
short(Id) ->
    binary:part(Id, byte_size(Id), -8).

%% @doc Whether a text is a whole id.
-spec is_id(binary()) -> boolean().
is_id(<<_:8/binary, $-, _:4/binary, $-, _:4/binary, $-, _:4/binary, $-, _:12/binary>>) -> true;
is_id(_) -> false.
