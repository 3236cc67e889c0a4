%% @doc Keeps what the router has learned over a restart: one small file in the data folder, written as a whole once a minute and
%% at a stop. What a kill loses is a minute of history. A file that cannot be read is left out, and written over.
-module(execution_history_file).

-include_lib("kernel/include/logger.hrl").

-export([load/0]).
-export([save/0]).

-define(VERSION, 1).
%% A file that is larger was not written here, in bytes.
-define(MAX_BYTES, 4194304).

%% @doc Reads it, where there is one.
-spec load() -> ok.
load() ->
    case file:read_file(path()) of
        {ok, <<Sum:32, Bytes/binary>>} when byte_size(Bytes) =< ?MAX_BYTES ->
            case erlang:crc32(Bytes) =:= Sum andalso take(Bytes) of
                ok -> ok;
                _ -> ?LOG_WARNING(#{msg => routing_history_unreadable, file => path()}, #{domain => [agent, execution]})
            end;
        _ ->
            ok
    end.

-spec take(binary()) -> ok | {error, malformed}.
take(Bytes) ->
    try binary_to_term(Bytes, [safe]) of
        {?VERSION, Rows} -> execution_history:import(Rows);
        _ -> {error, malformed}
    catch
        error:badarg -> {error, malformed}
    end.

%% @doc Writes it: beside its place first, then there.
-spec save() -> ok.
save() ->
    Bytes = term_to_binary({?VERSION, execution_history:export()}),
    Beside = path() ++ ".new",
    Written = case file:write_file(Beside, [<<(erlang:crc32(Bytes)):32>>, Bytes]) of
                  ok -> file:rename(Beside, path());
                  Error -> Error
              end,
    case Written of
        ok -> ok;
        {error, Reason} -> ?LOG_WARNING(#{msg => routing_history_not_kept, reason => Reason}, #{domain => [agent, execution]})
    end.

-spec path() -> file:filename().
path() ->
    filename:join(unicode:characters_to_list(agent_config:get([server, data_dir], <<"data">>)), "routing.history").
