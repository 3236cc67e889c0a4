%% @doc The one shape of an expected failure: `{error, agent_error:t()}'.
%%
%% Reasons are the closed set of `docs/errors/'; Rust maps them to gRPC statuses. Messages are for people and never hold a
%% prompt, a key or a secret.
-module(agent_error).

-export([new/2]).
-export([new/3]).

-export_type([t/0]).

-type t() :: #{
    reason := atom(),
    message := binary(),
    metadata => #{binary() => binary()},
    fields => [#{field := binary(), description := binary()}],
    retry_after_ms => non_neg_integer()
}.

%% @doc An error without details.
-spec new(atom(), iodata()) -> t().
new(Reason, Message) ->
    new(Reason, Message, #{}).

%% @doc An error with details; values may be text or integers.
-spec new(atom(), iodata(), #{binary() => iodata() | integer()}) -> t().
new(Reason, Message, Metadata) ->
    #{
        reason => Reason,
        message => iolist_to_binary(Message),
        metadata => maps:map(fun(_, V) when is_integer(V) -> integer_to_binary(V);
                                (_, V) -> iolist_to_binary(V)
                             end, Metadata)
    }.
