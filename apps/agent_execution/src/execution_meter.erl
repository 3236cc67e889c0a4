%% @doc What model calls and tools have used: sums of tokens, calls and cost. Pure.
%%
%% One call of unknown price makes the sum unknown: `cost_micros' is absent then, never zero.
-module(execution_meter).

-export([new/0]).
-export([call/2]).
-export([tool/1]).
-export([add/2]).
-export([more/2]).

-export_type([meter/0]).

-type meter() :: #{atom() => non_neg_integer()}.

-define(SUMS, [input_tokens, output_tokens, cached_tokens, reasoning_tokens, provider_calls, provider_calls_replayed, cache_hits,
               tool_calls]).

%% @doc Nothing used.
-spec new() -> meter().
new() ->
    (maps:from_keys(?SUMS, 0))#{cost_micros => 0}.

%% @doc One more model call, by the properties of its answer. What else is measured stays.
-spec call(map(), meter()) -> meter().
call(Props, M) when not is_map_key(provider_calls, M) ->
    call(Props, maps:merge(new(), M));
call(Props, M) ->
    Usage = maps:get(usage, Props, #{}),
    One = #{input_tokens => maps:get(input, Usage, 0), output_tokens => maps:get(output, Usage, 0),
            cached_tokens => maps:get(cached, Usage, 0), reasoning_tokens => maps:get(reasoning, Usage, 0),
            provider_calls => 1, provider_calls_replayed => flag(replayed, Props), cache_hits => flag(cache_hit, Props)},
    Priced = case Props of #{cost_micros := N} when is_integer(N) -> One#{cost_micros => N}; #{} -> One end,
    maps:merge(maps:remove(cost_micros, M), add(Priced, M)).

%% @doc One more call of a tool.
-spec tool(meter()) -> meter().
tool(M) ->
    maps:update_with(tool_calls, fun(N) -> N + 1 end, 1, M).

%% @doc The sum of two.
-spec add(meter(), meter()) -> meter().
add(#{input_tokens := I1, output_tokens := O1, cached_tokens := C1, reasoning_tokens := R1, provider_calls := P1,
      provider_calls_replayed := Y1, cache_hits := H1, tool_calls := T1, cost_micros := X1},
    #{input_tokens := I2, output_tokens := O2, cached_tokens := C2, reasoning_tokens := R2, provider_calls := P2,
      provider_calls_replayed := Y2, cache_hits := H2, tool_calls := T2, cost_micros := X2}) ->
    %% The usual case without a list: a plan adds three times for each of its steps.
    #{input_tokens => I1 + I2, output_tokens => O1 + O2, cached_tokens => C1 + C2, reasoning_tokens => R1 + R2,
      provider_calls => P1 + P2, provider_calls_replayed => Y1 + Y2, cache_hits => H1 + H2, tool_calls => T1 + T2,
      cost_micros => X1 + X2};
add(A, B) ->
    Sums = maps:from_list([{Key, maps:get(Key, A, 0) + maps:get(Key, B, 0)} || Key <- ?SUMS]),
    case {A, B} of
        {#{cost_micros := X}, #{cost_micros := Y}} -> Sums#{cost_micros => X + Y};
        _ -> Sums
    end.

%% @doc A meter with what somebody else has used on its account; what else is measured stays.
-spec more(meter(), meter()) -> meter().
more(Used, M) ->
    Before = case M of #{provider_calls := _} -> M; #{} -> maps:merge(new(), M) end,
    maps:merge(maps:remove(cost_micros, Before), add(Used, Before)).

-spec flag(atom(), map()) -> 0 | 1.
flag(Key, Props) ->
    case Props of #{Key := true} -> 1; #{} -> 0 end.
